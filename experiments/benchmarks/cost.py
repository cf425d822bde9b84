"""What a compiled round does for each coordinate of a message, counted and not timed.

  python -m experiments.benchmarks.cost

Operations as XLA counts them, of one client with one local step, less those of FedAvg, over the coordinates
of the update. They are the same on a busy machine. "Narrow loops" compute exponentials or logarithms beside a
gather or a concatenation: there XLA's loops go through coordinates one by one, many times as slow.

XLA counts the body of a `while` once, however often it runs. "Counted once" is how many such loops over long
arrays the round has beyond FedAvg's: where there are any, as where LRSUQ rejects on D4 and E8, or draws words
in a loop, the operations may be too few, and are to be compared with the same mechanism's alone.
"""

import re
from typing import NamedTuple

import jax
from absl import flags

from experiments import cli
from experiments.benchmarks.workloads import MECHANISMS, SHAPES, one_round
from experiments.tables import markdown

_LONG = 1000  # elements of a loop that matters
_SLOW = re.compile(r"= f32\[(\d+)[\d,]*\]\S* (?:exponential|exponential-minus-one|log|log-plus-one)\(")
_SIZES = re.compile(r"(?<=[\[,])\d+(?=[\],])")
_BRANCHES = re.compile(r" (?:gather|concatenate)\(")


class Cost(NamedTuple):
    """Of a round, for each coordinate.

    Attributes:
      flops: additions, multiplications and whatever else is one operation.
      transcendentals: exponentials, logarithms and the like.
      bytes: read and written by all loops.
      narrow: loops of the program, not for each coordinate, that XLA does not compile into wide instructions.
      once: `while` loops over long arrays, whose body is counted once.
    """

    flops: float
    transcendentals: float
    bytes: float
    narrow: int
    once: int


def narrow_loops(text: str) -> int:
    """How many fused loops of a compiled program's text have exponentials or logarithms beside a branch."""
    found = 0
    for body in re.split(r"\n}\n", text):
        long = any(int(size) >= _LONG for size in _SLOW.findall(body))
        found += bool("fused_computation" in body.split("(", 1)[0] and long and _BRANCHES.search(body))
    return found


def long_loops(text: str) -> int:
    """How many `while` loops of a compiled program's text carry long arrays."""
    carried = [line.split(" while(")[0] for line in text.splitlines() if " while(" in line]
    return sum(any(int(size) >= _LONG for size in _SIZES.findall(types)) for types in carried)


def of_round(mechanism, counts: bool = True, model: str = "mlp") -> Cost:
    """Cost of a round of one client.

    Args:
      mechanism: lengths of the tensors -> Mechanism, as in `MECHANISMS`.
      counts: whether the lengths of messages are counted.
      model: one of `SHAPES`.
    """
    function, arguments, d = one_round(model, mechanism, 1, 1, 1, counts=counts)
    compiled = jax.jit(function).lower(*arguments).compile()
    found = compiled.cost_analysis()
    each = (found.get(name, 0.0) / d for name in ("flops", "transcendentals", "bytes accessed"))
    text = compiled.as_text()
    return Cost(*each, narrow_loops(text), long_loops(text))


def beyond(cost: Cost, base: Cost) -> Cost:
    """A round's cost less that of another one."""
    return Cost(*(a - b for a, b in zip(cost, base, strict=True)))


def define_flags():
    flags.DEFINE_list("mechanisms", ["cepam Z1", "cepam rotated E8"], f"Some of {', '.join(MECHANISMS)}.")
    flags.DEFINE_string("model", "mlp", f"One of {', '.join(SHAPES)}.")


def main():
    f = flags.FLAGS
    cli.choice("model", SHAPES)
    cli.choices("mechanisms", MECHANISMS)
    base = of_round(MECHANISMS["fedavg"], model=f.model)
    rows = []
    for name in f.mechanisms:
        for counts in (True, False):
            cost = beyond(of_round(MECHANISMS[name], counts, f.model), base)
            label = name if counts else f"{name}, lengths not counted"
            rows.append([label, *(f"{value:.1f}" for value in cost[:3]), str(cost.narrow), str(cost.once)])
    titles = [
        "over FedAvg, a coordinate",
        "operations",
        "transcendental",
        "bytes",
        "narrow loops",
        "counted once",
    ]
    print(markdown(titles, rows))


if __name__ == "__main__":
    cli.run(main, define_flags)
