"""Gamma over rounds: rules that read what was released, against the best constant gamma and schedule.

  python -m experiments.figures.adaptive --data=digits --workdir=/tmp/adaptive
  python -m experiments.figures.adaptive --data=mnist,fashion_mnist --epsilon=1000 --workdir=/tmp/adaptive

At equal total epsilon, and at equal total bits of the rate model, each over several numbers of rounds: fewer
rounds have more for each. Of constant gammas and of schedules the best is chosen by its mean accuracy over
the seeds, which flatters them; a rule is judged at the longest run, without a grid, and at its best, with
one. All are paired over seeds.
"""

import functools
import itertools

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from scipy import optimize

from cepam_jax.errors import require
from cepam_jax.federated.control import SCHEDULES
from cepam_jax.theory import rate
from experiments import cli, output
from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import MARGIN, above, any_of, deviation, in_points, spread, verdict, with_error
from experiments.plots import style
from experiments.runs import (
    accuracies,
    config_of,
    coordinates_of,
    define_training_flags,
    mean_of,
    train_all,
)
from experiments.tables import markdown

FIXED = {"constant": 1.0, "exponential, to 2": 2.0, "exponential, to 4": 4.0}
RULES = ("plateau", "signal_to_noise", "greedy")
PARTITIONS = {
    "iid": {"partition__kind": "iid"},
    "dirichlet": {"partition__kind": "dirichlet", "partition__alpha": 0.3},
}
BUDGETS = ("epsilon", "bits")
GAIN = 1.0  # points of accuracy that a rule is to gain over the best constant gamma
SAVED = 0.75  # part of the bits with which a rule is to be as accurate
LOOSE = 100.0  # times the rounds: a budget of noise that nothing reaches before its bits are spent
SMOKE = {
    "data": ["digits"],
    "seeds": 2,
    "lengths": ["3"],
    "partitions": ["iid"],
    "budgets": ["epsilon"],
}


@functools.lru_cache
def coordinates(data: str) -> int:
    """d of an update."""
    return coordinates_of(config_of(data, "cepam_gaussian", model="mlp"))


@functools.lru_cache
def model_bits(ratio: float) -> float:
    """Bits per coordinate of scalar LRSUQ, as the filter of rules counts them."""
    return rate.layered_limit(ratio, 400)


def gamma_of_bits(total: float, rounds: int, end: float, d: int) -> float:
    """gamma of the first round of a schedule whose rounds spend so many bits per coordinate by the model."""
    factors = [float(SCHEDULES["exponential"](end, rounds)(t)) if end != 1 else 1.0 for t in range(rounds)]
    grid = np.linspace(-10, 8, 73)
    known = np.log2([model_bits(float(2**x)) for x in grid])

    def excess(log_ratio):
        return np.sum(2 ** np.interp(log_ratio + np.log2(factors), grid, known)) - total

    return float(2 ** optimize.brentq(excess, -9, 6) * np.sqrt(d))


def configs_of(data: str, partition: str, budget: str) -> dict:
    """Label -> configuration, at one budget of "epsilon" or "bits"."""
    f, found = flags.FLAGS, {}
    for length in cli.numbers("lengths", int):
        fields = {**PARTITIONS[partition], "rounds": length, "eval_every": length}
        if budget == "epsilon":
            fields["privacy__target_epsilon"] = f.epsilon
        methods = [(name, {"schedule__end": end}, 1.0) for name, end in FIXED.items()]
        parts = (1.0,) if budget == "epsilon" else (1.0, SAVED)
        methods += [(name, {"control": name}, part) for part in parts for name in RULES]
        for name, changes, part in methods:
            mine = {**fields, **changes}
            if mine.get("schedule__end", 1.0) != 1.0:
                mine |= {"schedule__knob": "gamma", "schedule__kind": "exponential"}
            if budget == "bits":
                d = coordinates(data)
                end = mine.get("schedule__end", 1.0)
                mine["mechanism__gamma"] = gamma_of_bits(f.bits * part, length, end, d)
                if name in RULES:
                    mine |= {"filter__bits": f.bits * part / length, "filter__rounds": LOOSE * length}
            label = f"{name}, {length} rounds" + (f", {100 * part:.0f} % bits" if part != 1 else "")
            found[label] = (name, length, part, config_of(data, "cepam_gaussian", model="mlp", **mine))
    return found


def measure(data: str, partition: str, budget: str) -> list[dict]:
    """A row for each method, length and part of the bits."""
    f = flags.FLAGS
    made = configs_of(data, partition, budget)
    where = f"{f.workdir}/runs/{data}/{partition}/{budget}"
    configs = {label: config for label, (*_, config) in made.items()}
    results = train_all(configs, f.seeds, where, f.progress, keep_failures=True)
    rows = []
    for label, (name, length, part, _) in made.items():
        runs = results[label]
        whole = np.array([lines[-1]["round"] == length for lines in runs])
        each = np.where(whole, accuracies(runs), 0.0)  # a run that diverged has learned nothing
        rows.append(
            {
                "data": data,
                "partition": partition,
                "budget": budget,
                "method": name,
                "rounds": length,
                "part": part,
                "accuracy": each.tolist(),
                "diverged": int((~whole).sum()),
                "bits": [length * mean_of([lines], "bits_per_coordinate") for lines in runs],
                "epsilon": runs[0][-1].get("epsilon", {}).get("released_model"),
            }
        )
    return rows


def best(rows: list[dict]) -> dict:
    """The row with the largest mean accuracy."""
    return max(rows, key=lambda row: float(np.mean(row["accuracy"])))


def even_over_best(contraction: float, rounds: int) -> float:
    """By the bound, what an even spread leaves of noise in the last model, over what the best spread does.

    T sum q^(2 i) / (sum q^i)^2 with q = 1 - a, the sums over i < T.
    """
    powers = (1 - contraction) ** np.arange(rounds)
    return float(rounds * np.sum(powers**2) / np.sum(powers) ** 2)


def claims_of(rows: list[dict]) -> list[Claim]:
    """Does some rule do better than the best constant gamma? Of the rows of one data set and partition."""
    if not rows:
        return []
    data, seeds = f"{rows[0]['data']}, {rows[0]['partition']}", len(rows[0]["accuracy"])
    budget, longest = rows[0]["budget"], max(row["rounds"] for row in rows)

    def of(names, length=None, part=1.0):
        known = [row for row in rows if row["method"] in names and row["part"] == part]
        return [row for row in known if length is None or row["rounds"] == length]

    constant = best(of(["constant"]))
    same_length = of(["constant"], longest)[0]
    chosen = f"best constant: {constant['rounds']} rounds, chosen by the same runs"
    equal = f"at equal {budget}" + (" of the rate model" if budget == "bits" else "")
    text = f"{data}: {equal} a rule with a grid of rounds gains {GAIN:g} point on the best constant"
    found = [_gain(text, of(RULES), constant, chosen, seeds, budget)]
    text = f"{data}: {equal} a rule without a grid of rounds gains {GAIN:g} point on the best constant"
    found.append(_gain(text, of(RULES, longest), constant, chosen, seeds, budget))
    text = f"{data}: {equal} and {longest} rounds a rule gains {GAIN:g} point over constant gamma"
    found.append(_gain(text, of(RULES, longest), same_length, "one length", seeds, budget))
    if budget == "bits":
        fewer = f"{100 * (1 - SAVED):.0f} % fewer bits of the rate model"
        text = f"{data}: with {fewer} a rule is as accurate as the best constant"
        note = f"margin {MARGIN:g} points; {chosen}"
        found.append(_gain(text, of(RULES, part=SAVED), constant, note, seeds, budget, -MARGIN))
    return found


def _gain(text: str, rows: list, against: dict, note: str, seeds: int, budget: str, least: float = GAIN):
    """The claim that one of these rows gains so many points; a rule has a row for each length.

    There is a bound for each row, so that whichever length is shown was not chosen by its own runs.
    """
    gains = [in_points(row["accuracy"], against["accuracy"]) for row in rows]
    states = [above(gain, least, len(rows)) for gain in gains]
    measured = []
    for rule in dict.fromkeys(row["method"] for row in rows):
        mine = best([row for row in rows if row["method"] == rule])
        more = np.mean(mine["bits"]) / np.mean(against["bits"])
        text_of_bits = f", {more:.2f} times the bits" if budget == "bits" else ""
        values = with_error(in_points(mine["accuracy"], against["accuracy"]))
        measured.append(f"{rule} {values} ({mine['rounds']} rounds{text_of_bits})")
    state, diverged = any_of(states), sum(row["diverged"] for row in (*rows, against))
    if diverged:
        note += f"; {diverged} runs diverged and count as accuracy 0"
    return Claim(
        "this project",
        text,
        f"points: {', '.join(measured)}; {seeds} seeds",
        verdict(None if diverged and state is False else state, seeds),
        f"{note}; {len(rows)} bounds of paired t tests, together at 5 %",
        SERVER_TRUSTED + ("; epsilon against the released model" if budget == "epsilon" else ""),
    )


def plot(rows: list[dict]) -> Figure:
    """Accuracy against the number of rounds, a panel for each budget, partition and data set."""
    keys = list(dict.fromkeys((row["data"], row["partition"], row["budget"]) for row in rows))
    columns = min(2, len(keys))
    lines = -(-len(keys) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.8 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (data, partition, budget) in itertools.zip_longest(panels, keys, fillvalue=(None, None, None)):
        if data is None:
            axes.set_axis_off()
            continue
        mine = [
            row for row in rows if (row["data"], row["partition"], row["budget"]) == (data, partition, budget)
        ]
        for number, name in enumerate((*FIXED, *RULES)):
            of = [row for row in mine if row["method"] == name and row["part"] == 1]
            axes.errorbar(
                [row["rounds"] for row in of],
                [np.mean(row["accuracy"]) for row in of],
                [deviation(row["accuracy"]) for row in of],
                capsize=2,
                label=name.replace("_", " "),
                **style(number),
            )
        lengths = sorted({row["rounds"] for row in mine})
        axes.set(
            xscale="log",
            xlabel="rounds",
            ylabel="test accuracy",
            title=f"{data}, {partition}, equal {budget}",
        )
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def accuracy_text(row: dict) -> str:
    """Mean and deviation, and how many runs diverged."""
    return spread(row["accuracy"]) + (f", {row['diverged']} diverged" if row["diverged"] else "")


def table(rows: list[dict]) -> str:
    """The rows in Markdown; gains are those over the constant gamma of the same panel that is best."""
    lines = []
    for row in rows:
        same = [r for r in rows if all(r[k] == row[k] for k in ("data", "partition", "budget"))]
        constant = best([r for r in same if r["method"] == "constant"])
        gained = "" if row is constant else with_error(in_points(row["accuracy"], constant["accuracy"]))
        lines.append(
            [
                *(row["data"], row["partition"]),
                row["budget"] + (f", {100 * row['part']:.0f} %" if row["part"] != 1 else ""),
                *(row["method"].replace("_", " "), row["rounds"], accuracy_text(row), gained),
                f"{np.mean(row['bits']):.2f}",
                "none" if row["epsilon"] is None else f"{row['epsilon']:.4g}",
            ]
        )
    head = ["data", "partition", "equal", "gamma", "rounds", "test accuracy", "points over best constant"]
    return markdown([*head, "bits in all", "epsilon"], lines)


def near_text(lengths) -> str:
    """How far an even spread is from the best one by the bound."""
    shown = (0.01, 0.03, 0.1)
    rows = [[a, *(f"{even_over_best(a, length):.2f}" for length in lengths)] for a in shown]
    head = ["contraction of a round", *(f"{length} rounds" for length in lengths)]
    return "Noise in the last model by the bound, constant gamma over the best spread:\n\n" + markdown(
        head, rows
    )


def define_flags():
    define_training_flags(("mnist", "fashion_mnist"), seeds=10)
    flags.DEFINE_list("lengths", ["20", "40", "80"], "Numbers of rounds that are tried.")
    flags.DEFINE_list("partitions", list(PARTITIONS), f"Of {', '.join(PARTITIONS)}.")
    flags.DEFINE_list("budgets", list(BUDGETS), f"What is equal, of {', '.join(BUDGETS)}.")
    flags.DEFINE_float("epsilon", 300.0, "Of the whole run, against the released model.")
    flags.DEFINE_float("bits", 8.0, "Bits per coordinate of the whole run, by the rate model.")


def main():
    f = flags.FLAGS
    cli.choices("partitions", PARTITIONS)
    cli.choices("budgets", BUDGETS)
    lengths = cli.numbers("lengths", int)
    require(min(lengths) >= 1, "--lengths", lengths, "numbers of at least 1")
    rows, claims = [], []
    for data, partition, budget in itertools.product(f.data, f.partitions, f.budgets):
        found = measure(data, partition, budget)
        rows += found
        claims += claims_of(found)
    settings = (
        f"{f.seeds} seeds (mean ± standard deviation); epsilon {f.epsilon:g}, bits {f.bits:g} in all\n\n"
    )
    output.save(settings + table(rows) + "\n\n" + near_text(lengths), rows, plot(rows), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
