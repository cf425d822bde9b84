"""How far the radii of LRSUQ's layers are from their law: the constants of `cepam_jax.privacy.arithmetic`.

  python -m experiments.radius_law

For every target and block size: where the bulk ends (chosen so that the bound is least at ten million
blocks), the two constants and what they amount to.
"""

from absl import flags

from cepam_jax.privacy import arithmetic
from experiments import cli
from experiments.tables import markdown

BLOCKS = 10_000_000
ENDS = {
    "gaussian": (4.5, 5.0, 5.25, 5.5, 5.75, 6.0, 6.25, 6.5, 6.75),
    "laplace": (15.0, 16.0, 17.0, 18.0, 19.0, 20.0, 22.0),
}


def define_flags():
    flags.DEFINE_list(
        "laws", [f"{t}:{n}" for t, n in arithmetic.DEFECTS], "Targets and coordinates per block."
    )


def best(target: str, dimension: int) -> arithmetic.Defect:
    """With the least bound at `BLOCKS` blocks, over where the bulk ends."""
    found = [arithmetic.measure(target, dimension, end) for end in ENDS[target]]
    return min(found, key=lambda defect: defect.total_variation(BLOCKS))


def main():
    rows = []
    for law in flags.FLAGS.laws:
        target, dimension = law.split(":")
        defect = best(target, int(dimension))
        totals = [f"{defect.total_variation(blocks):.1e}" for blocks in (100_000, BLOCKS, 1_000_000_000)]
        rows.append(
            [target, dimension, f"{defect.end:g}", f"{defect.bulk:.2e}", f"{defect.tail:.2e}", *totals]
        )
    header = ["target", "coordinates per block", "end of the bulk", "bulk", "tail"]
    print(markdown([*header, "1e5 blocks", "1e7", "1e9"], rows))


if __name__ == "__main__":
    cli.run(main, define_flags)
