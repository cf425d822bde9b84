"""What all parties of a federation have signed up to: one file, the same to the bit on every machine.

It holds the configuration as it is carried out (calibrated to a privacy target), who takes part with how many
examples and which public key, the server's public key, the shapes of an example, the constants that every
batch is seen with, and the versions of what computes, this package's own sources among them. Its digest goes
into all keys and messages: who holds another file understands nothing. Nothing in it is secret.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import ml_collections
import numpy as np

import cepam_jax
from cepam_jax import files
from cepam_jax.data.examples import Examples
from cepam_jax.data.partition import Partition
from cepam_jax.deploy import keys
from cepam_jax.errors import ConfigError, require
from cepam_jax.federated import AGGREGATORS, Plan
from cepam_jax.run import allowed, build, guarantees
from cepam_jax.run.config import plain, validate
from cepam_jax.settings import FIELDS
from cepam_jax.tasks.base import Model, Task

SCHEMA = 4


class Agreement(NamedTuple):
    """The file, read.

    Attributes:
      text: canonical JSON, from which the digest is.
      config: as it is carried out.
      specification: of the examples.
      counts: int32[clients], training examples of each.
      holders: the most clients that hold examples of one owner, as `Partition` has it.
      rounds: that are run, at most config.rounds.
      names: of the clients.
      clients, server: public keys.
      constants: name -> array.
    """

    text: str
    config: ml_collections.ConfigDict
    specification: tuple
    counts: np.ndarray
    holders: int
    rounds: int
    names: tuple[str, ...]
    clients: tuple[str, ...]
    server: str
    constants: dict[str, np.ndarray]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).digest()

    def parts(self) -> tuple[Task, Model, Plan]:
        """The task, the shapes of its model, and the parts of a round on one device."""
        task = build.task_of(self.config, self.specification)
        model = jax.eval_shape(task.initialize, jax.random.key(0))
        return task, model, build.plan_of(self.config, task, model, None, jax.default_backend())


def make(
    config: ml_collections.ConfigDict,
    data: Examples,
    split: Partition,
    server: str,
    clients: list[str],
    names: list[str] | None = None,
) -> Agreement:
    """The agreement of a configuration.

    Args:
      config: as `cepam_jax.defaults()` makes it.
      data: examples of the same shapes as everybody's, with the constants.
      split: how many examples each client has, and with how many clients one owner's lie (`counts` and
        `holders`; the rest is not read).
      server: its public key.
      clients: one public key for each.
      names: one for each; by default their numbers.

    Raises:
      ConfigError: the configuration is not valid, or asks for what cannot be deployed; the numbers of clients
        and keys differ.
    """
    config = plain(config)
    validate(config)
    check(config)
    number = config.num_clients
    require(len(clients) == number, "number of public keys", len(clients), f"config.num_clients = {number}")
    server, clients = keys.normal(server), [keys.normal(public) for public in clients]
    names = [str(k) for k in range(number)] if names is None else names
    require(len(names) == number, "number of names", len(names), f"config.num_clients = {number}")
    config, found = allowed.planned(
        config, split.counts, build.program(config, data.specification), watched=True
    )
    if found is not None:  # the gammas say what the needs said
        usual = {name: field.default for name, field in FIELDS.items() if name.startswith("needs.")}
        config.update_from_flattened_dict(usual)
    return read(
        _canonical(
            {
                "schema": SCHEMA,
                "versions": versions(),
                "config": json.loads(config.to_json()),
                "specification": data.specification,
                "counts": split.counts.tolist(),
                "holders": split.holders,
                "rounds": guarantees.rounds_within_budget(config, split.counts, watched=True),
                "names": names,
                "clients": clients,
                "server": server,
                "constants": {
                    name: [str(array.dtype), array.shape, np.asarray(array).reshape(-1).tolist()]
                    for name, array in data.constants.items()
                },
            }
        )
    )


def read(text: str) -> Agreement:
    """The agreement of a text.

    Raises:
      ConfigError: it is none, or not of this version, or asks for what cannot be deployed.
    """
    try:
        found = json.loads(text)
        require(found["schema"] == SCHEMA, "schema of the agreement", found["schema"], f"{SCHEMA}")
        _check_versions(found["versions"])
        constants = {
            name: np.asarray(values, dtype).reshape(shape)
            for name, (dtype, shape, values) in found["constants"].items()
        }
        config = plain(found["config"])
        validate(config)
        check(config)
        _check_parties(found, config)
        return Agreement(
            _canonical(found),
            config,
            _tuples(found["specification"]),
            np.asarray(found["counts"], np.int32),
            found["holders"],
            int(found["rounds"]),
            tuple(found["names"]),
            tuple(found["clients"]),
            found["server"],
            constants,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"this is no agreement of a federation: {error!r}") from error


def versions() -> dict[str, str]:
    """What all parties must have of the same version, and which is here.

    Both ends compile the same functions and draw the same shared words; another compiler may round otherwise,
    and another generator draw otherwise. A message may then decode to something else than what was encoded.
    """
    packages = {"cepam_jax": cepam_jax.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}
    return packages | {"sources": _sources(Path(cepam_jax.__file__).parent)}


@functools.cache
def _sources(folder: Path) -> str:
    """SHA-256 of a folder's modules: two commits are two versions, whatever number they bear."""
    found = hashlib.sha256()
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.py")):
        text = path.read_bytes().replace(b"\r\n", b"\n")  # as some systems check it out
        found.update(f"{name} {len(text)}\n".encode() + text)
    return found.hexdigest()


def _check_versions(agreed: dict[str, str]) -> None:
    here = versions()
    for name in sorted(here.keys() | agreed.keys()):
        whose = f"{agreed[name]}, as was agreed to" if name in agreed else "one, and the agreement names none"
        why = f"{whose}; another one may compute other bits of the same message"
        same = agreed.get(name) == here.get(name)
        require(same, f"version of {name}", here.get(name, "not known here"), why)


def _check_parties(found: dict[str, Any], config) -> None:
    """Checks that an agreement's parties and rounds are those of its configuration."""
    number, rounds, holders = config.num_clients, found["rounds"], found["holders"]
    for name in ("counts", "names", "clients"):
        count = len(found[name])
        require(count == number, f"number of {name}", count, f"{number}, one for each client")
    whole = isinstance(rounds, int) and 1 <= rounds <= config.rounds
    require(whole, "rounds of the agreement", rounds, f"a whole number from 1 to {config.rounds}")
    whole = isinstance(holders, int) and 1 <= holders <= number
    require(whole, "holders of the agreement", holders, f"a whole number from 1 to {number}")
    public = [found["server"], *found["clients"]]
    normal = public == [keys.normal(key) for key in public]
    require(normal, "public keys", "spelt otherwise", "as `enrol` writes them")
    require(len(set(public)) == number + 1, "public keys", "the same twice", "one for each party")


def number_of(agreement: Agreement, public: str) -> int:
    """Which client has a public key; ConfigError if none has."""
    allowed = "one of the agreement's clients"
    require(public in agreement.clients, "public key", public[:8] + "...", allowed)
    return agreement.clients.index(public)


def load(path: Path) -> Agreement:
    """The agreement of a file; ConfigError if it holds none."""
    try:
        text = Path(path).read_text()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text; it must be an agreement, as `enrol` writes it") from None
    return read(text)


def save(agreement: Agreement, path: Path) -> None:
    """Writes it, for all parties."""
    files.write(Path(path), agreement.text)


# What a deployment does not do, by field, and what it must be.
_MUST_BE: dict[str, tuple[Any, str]] = {
    "downlink.name": ("none", "the model is sent in full"),
    "mechanism.error_feedback": (False, "a client that lost its memory would send other noise"),
    "mechanism.quantize": ("updates", "nothing bounds weights"),
    "participation.sampling": ("fixed", "the number of participants is known"),
    "byzantine.attack": ("none", "nobody simulates lies"),
    "byzantine.check": (False, "norms are not checked"),
    "server.noise": (False, "each client adds its own"),
    "init": ("", "training begins with an untrained model"),
    "trainable": ("all", "all parameters are sent"),
    "adapter.rank": (0, "all parameters are sent"),
    "local.worker_momentum": (0.0, "clients keep nothing but their keys"),
    "local.normalize": (False, "the server is not told by what updates were divided"),
}


def check(config) -> None:
    """Checks that a configuration asks for nothing that a deployment does not do.

    Raises:
      ConfigError: names the field, its value, and what it must be.
    """
    for name, (value, why) in _MUST_BE.items():
        *sections, last = name.split(".")
        place = config
        for section in sections:
            place = place[section]
        require(place[last] == value, f"config.{name}", place[last], f"{value!r} in a deployment: {why}")
    summed = "one whose messages are decoded one by one in a deployment: sums of masks are not built"
    require(config.mechanism.name != "secure_sum", "config.mechanism.name", config.mechanism.name, summed)
    rule = AGGREGATORS.get_or_raise(config.aggregator)
    public = rule.weigh is None or rule.public_weights is not None
    why = "one that does not go by errors, which clients do not report in a deployment"
    require(public, "config.aggregator", config.aggregator, why)
    plans = not build.control_of(config).adaptive
    why = "one that reads no results in a deployment: each client plans its own noise"
    require(plans, "config.control", config.control, why)


def _canonical(found: dict[str, Any]) -> str:
    return json.dumps(found, sort_keys=True, separators=(",", ":")) + "\n"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
