"""Examples of any kind: a training and a test split as dictionaries of arrays with a leading axis."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from cepam_jax.errors import DatasetError

Arrays = Mapping[str, np.ndarray]


class Examples(NamedTuple):
    """What a task is trained and tested on; all on the host.

    Attributes:
      train, test: name -> array [examples, ...]; the same names, types and shapes but for the first axis.
      constants: arrays that every batch is seen with, such as the pixels' mean; without a leading axis.
      facts: what a task needs to know before anything is compiled, such as ("num_classes", 10); hashable.
      labels: int[training examples], by which a partition may divide; None: there are none.
      owners: int[training examples], whose each example is, from 0 on, for `partition.kind=natural`.
      test_owners: int[test examples], likewise, for the evaluation by clients.
      sizes: int[training examples], how large each example is, for `partition.kind=by_size`.
    """

    train: Arrays
    test: Arrays
    constants: Arrays = MappingProxyType({})
    facts: tuple[tuple[str, Any], ...] = ()
    labels: np.ndarray | None = None
    owners: np.ndarray | None = None
    test_owners: np.ndarray | None = None
    sizes: np.ndarray | None = None

    @property
    def specification(self) -> tuple:
        """What programs for these examples have in common: facts, names, types and shapes of one example."""
        arrays = (self.train, self.constants)
        shapes = tuple(
            tuple((name, str(array.dtype), array.shape[1 - i :]) for name, array in sorted(tree.items()))
            for i, tree in enumerate(arrays)
        )
        return (self.facts, *shapes)


def example_of(specification: tuple) -> dict[str, np.ndarray]:
    """One example of zeros, with the names, types and shapes of a specification."""
    return {name: np.zeros(shape, dtype) for name, dtype, shape in specification[1]}


def number_of(arrays: Arrays) -> int:
    """How many examples there are."""
    return len(next(iter(arrays.values())))


def examples(
    train: Arrays,
    test: Arrays,
    constants: Arrays | None = None,
    labels: np.ndarray | None = None,
    owners: np.ndarray | None = None,
    test_owners: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    **facts,
) -> Examples:
    """Checked Examples; the arguments as `Examples` says.

    Raises:
      DatasetError: names the array that does not fit, and how.
    """
    given = (labels, owners, test_owners, sizes)
    return check(Examples(train, test, constants or {}, tuple(sorted(facts.items())), *given))


def check(data: Examples) -> Examples:
    """The same examples in the types that devices hold.

    Raises:
      DatasetError: names the array that does not fit, and how.
    """
    train, test = checked("train", data.train), checked("test", data.test)
    if train.keys() != test.keys():
        raise DatasetError(f"train has the arrays {sorted(train)}, test {sorted(test)}; they must be alike")
    for name, array in train.items():
        other = test[name]
        if (array.dtype, array.shape[1:]) != (other.dtype, other.shape[1:]):
            raise DatasetError(
                f"train[{name!r}] holds {array.dtype}{list(array.shape[1:])} per example, test "
                f"{other.dtype}{list(other.shape[1:])}; they must be alike"
            )
    constants = {name: _array(f"constants[{name!r}]", array) for name, array in data.constants.items()}
    try:
        hash(data.facts)
    except TypeError as error:
        raise DatasetError(f"facts are {data.facts!r}; they must be hashable ({error})") from error
    return data._replace(
        train=train,
        test=test,
        constants=constants,
        labels=_per_example("labels", data.labels, train),
        owners=_per_example("owners", data.owners, train),
        test_owners=_per_example("test_owners", data.test_owners, test),
        sizes=_per_example("sizes", data.sizes, train),
    )


def checked(name: str, arrays: Any) -> Arrays:
    """Arrays with one leading axis, in the types that devices hold.

    Raises:
      DatasetError: they are no such arrays, or hold numbers that are not finite; begins with the name.
    """
    if not isinstance(arrays, Mapping) or not arrays:
        raise DatasetError(f"{name} is a {type(arrays).__name__}; it must be a dictionary of arrays")
    found = {key: _array(f"{name}[{key!r}]", array) for key, array in arrays.items()}
    lengths = {key: array.shape[:1] for key, array in found.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values() or (0,) in lengths.values():
        text = ", ".join(f"{key}: {list(found[key].shape)}" for key in found)
        raise DatasetError(f"{name} has arrays of shapes {text}; all need one leading axis, not empty")
    return found


_TYPES = {np.dtype(np.int64): np.int32, np.dtype(np.float64): np.float32}


def _array(name, array) -> np.ndarray:
    if (
        not isinstance(array, np.ndarray)
        or isinstance(array, np.ma.MaskedArray)
        or array.dtype.kind not in "biuf"
    ):
        kind = getattr(array, "dtype", type(array).__name__)
        raise DatasetError(f"{name} is {kind}; it must be a NumPy array of numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DatasetError(f"{name} holds NaN or infinite numbers")
    native = array.dtype.newbyteorder("=")
    wanted = _TYPES.get(native, native)
    if array.dtype.itemsize > 8:
        raise DatasetError(f"{name} is {array.dtype}; it must have at most 64 bits a number")
    if array.dtype.kind in "iu" and array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise DatasetError(f"{name} holds integers that 32 bits do not")
    if (
        native == np.float64
        and np.abs(array, where=array != 0, out=np.zeros_like(array)).max(initial=0) > 3e38
    ):
        raise DatasetError(f"{name} holds numbers that 32-bit floats do not")
    return array.astype(wanted, copy=False)


def _per_example(name, array, split) -> np.ndarray | None:
    if array is None:
        return None
    array = _array(name, array)
    if array.shape != (number_of(split),) or array.dtype.kind not in "iu":
        raise DatasetError(
            f"{name} are {array.dtype}{list(array.shape)}; they must be {number_of(split)} integers, one per "
            f"example"
        )
    if array.min() < 0:
        raise DatasetError(f"{name}[{int(array.argmin())}] is {array.min()}; it must be at least 0")
    return array.astype(np.int32)
