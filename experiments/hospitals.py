"""A finished run of a yes-or-no task, hospital by hospital, with intervals.

  python -m experiments.train --config=configs/hospitals.py:cepam_gaussian --workdir=/tmp/hospitals
  python -m experiments.hospitals --run=/tmp/hospitals

Accuracy and sensitivity have Wilson's intervals, the area under the ROC curve Newcombe's, all at 95 %, each
by itself. The threshold is one for all: the lowest that leaves at least 90 % of all benign test patients
alone. Hospitals of a dozen test patients say little, and the intervals show how little.
"""

import numpy as np
from absl import flags

from cepam_jax.errors import ConfigError
from cepam_jax.run import build, finished
from cepam_jax.tasks import scores
from cepam_jax.tasks.tables import SPECIFICITY
from experiments import cli
from experiments.intervals import area_interval, wilson
from experiments.tables import markdown


def with_interval(value: float, ends: tuple[float, float]) -> str:
    """A share and its interval, as text; empty where there is none."""
    return "" if np.isnan(value) else f"{value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"


def row_of(name: str, trained: str, sums: dict, count: float, edge: int) -> list[str]:
    """One line of the table.

    Args:
      name: of the hospital.
      trained: its training examples.
      sums: of the task over its test examples.
      count: their number.
      edge: of the bins of scores, from which on the answer is yes.
    """
    no, yes = np.asarray(sums["scores"], np.float64)
    area, found = scores.area(sums["scores"]), yes[edge:].sum()
    sensitivity = found / yes.sum() if yes.sum() else float("nan")
    specificity = no[:edge].sum() / no.sum() if no.sum() else float("nan")
    right = float(sums["accuracy"])
    return [
        name,
        trained,
        f"{count:.0f}",
        f"{yes.sum():.0f}",
        with_interval(right / count, wilson(right, count)),
        with_interval(area, area_interval(area, yes.sum(), no.sum())),
        with_interval(sensitivity, wilson(found, yes.sum())),
        with_interval(specificity, wilson(no[:edge].sum(), no.sum())),
        f"{scores.calibration_error(sums['calibration'], count):.3f}",
    ]


def table(run: finished.Finished) -> str:
    """Markdown: a line for each hospital that is a client and has test examples, and one for all of these."""
    found, split = finished.evaluate(run), build.split_of(run.config, run.data)
    if "scores" not in found.test:
        raise ConfigError(f"config.task of the run is {run.config.task!r}; it must be 'binary_outcome'")
    together = {name: each.sum(0) for name, each in found.clients.items()}
    edge = scores.edge_at(np.asarray(together["scores"], np.float64)[0], SPECIFICITY)
    owners = run.data.owners[split.indices[:, 0]]
    rows = []
    for k in np.flatnonzero(found.counts):
        sums = {name: each[k] for name, each in found.clients.items()}
        rows.append(row_of(str(owners[k]), str(split.counts[k]), sums, float(found.counts[k]), edge))
    rows.append(row_of("all", str(split.counts.sum()), together, float(found.counts.sum()), edge))
    heads = ["hospital", "trained on", "tested", "of them malignant", "accuracy", "area under the ROC curve"]
    heads += ["sensitivity", "specificity", "calibration error"]
    return markdown(heads, rows)


def define_flags():
    flags.DEFINE_string("run", None, "Work directory of a run.", required=True)


def main():
    run = finished.load(flags.FLAGS.run)
    print(f"round {run.round}, {run.config.model}, {run.config.mechanism.name}\n")
    print(table(run))


if __name__ == "__main__":
    cli.run(main, define_flags)
