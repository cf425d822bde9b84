"""Scenario 1: CEPAM against FedAvg without privacy: accuracy by round and by transmitted bit.

  python -m experiments.figures.scenario1 --workdir=/tmp/scenario1

Every gamma runs for half as many rounds again as FedAvg is given, so that rounds needed to reach FedAvg's
accuracy can be counted: the first at which the mean over seeds, averaged over five evaluations, reaches
what FedAvg has at its last planned round, less a tolerance. Rounds have no spread over seeds that way, so the
claim asks of each seed what CEPAM has, beyond FedAvg's last accuracy less the tolerance, in 15 % more rounds
than FedAvg needs. The best gamma is the cheapest within one point of FedAvg.
"""

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments import cli, output
from experiments.output import NO_PRIVACY, SERVER_TRUSTED, Claim
from experiments.paired import (
    MARGIN,
    TOGETHER,
    above,
    all_of,
    any_of,
    below,
    bounds,
    differences,
    in_points,
    points,
    spread,
    verdict,
    with_error,
)
from experiments.plots import band
from experiments.runs import config_of, define_training_flags, settings_text, train_all
from experiments.tables import markdown

SMOKE = {"data": ["digits"], "seeds": 2, "rounds": 10, "gammas": ["100", "10"], "clipped": True}
CLIPPED = "clipped fedavg"  # what the clip costs without any noise
_SMOOTH = 5  # evaluations
_TOLERANCE = 0.01
_MORE_ROUNDS = 0.15


def smoothed_seeds(runs):
    """f64[seeds, evaluations], accuracy averaged with the evaluations before it; round 0 is left out."""
    each = np.array([[line["accuracy"] for line in lines[1:]] for lines in runs])
    return np.stack([each[:, max(0, i - _SMOOTH + 1) : i + 1].mean(1) for i in range(each.shape[1])], axis=1)


def smoothed(runs):
    """Its mean over seeds, f64[evaluations]."""
    return smoothed_seeds(runs).mean(0)


def rounds_to(runs, target: float) -> int | None:
    """First evaluated round at which the smoothed accuracy reaches the target."""
    reached = np.flatnonzero(smoothed(runs) >= target)
    return runs[0][1 + reached[0]]["round"] if len(reached) else None


def at(runs, number: int, field: str = "accuracy"):
    """A field of each seed's evaluation at a round."""
    return np.array([next(line[field] for line in lines if line["round"] == number) for lines in runs])


def rows_of(data: str, results: dict, planned: int) -> list[dict]:
    """One row per method of a data set."""
    fedavg = results["fedavg"]
    rounds = [line["round"] for line in fedavg[0][1:]]
    targets = smoothed_seeds(fedavg)[:, rounds.index(planned)] - _TOLERANCE
    target = targets.mean()
    needed = rounds_to(fedavg, target)
    allowed = np.searchsorted(rounds, (1 + _MORE_ROUNDS) * needed, side="right") - 1
    rows = []
    for name, runs in results.items():
        bits = np.mean([line["bits_per_coordinate"] for lines in runs for line in lines[1:]])
        rows.append(
            {
                "data": data,
                "method": name,
                "accuracy": at(runs, planned).tolist(),
                "lost": points(at(fedavg, planned), at(runs, planned)),
                "losses": in_points(at(fedavg, planned), at(runs, planned)).tolist(),
                "lost_mean": 100 * float(np.mean(at(fedavg, planned) - at(runs, planned))),
                "beyond": in_points(smoothed_seeds(runs)[:, allowed], targets).tolist(),
                "bits": float(bits),
                "saved": 1 - float(bits) / 32,
                "rounds_to_target": rounds_to(runs, target),
                "rounds_of_fedavg": needed,
            }
        )
    return rows


def plot(everything):
    figure = Figure(figsize=(9, 3.4 * len(everything)), layout="constrained")
    panels = figure.subplots(len(everything), 2, squeeze=False, sharey="row")
    for (data, results), (by_round, by_data) in zip(everything.items(), panels, strict=True):
        for number, (name, runs) in enumerate(results.items()):
            accuracy = [[line["accuracy"] for line in lines[1:]] for lines in runs]
            sent = np.mean([[line["uplink_bits"] for line in lines[1:]] for lines in runs], axis=0)
            band(by_round, [line["round"] for line in runs[0][1:]], accuracy, name, number)
            band(by_data, np.cumsum(sent) / 8e6, accuracy, name, number)
        top = max(line["accuracy"] for runs in results.values() for lines in runs for line in lines)
        by_round.set(xlabel="round", ylabel=f"test accuracy, {data}", ylim=(top - 0.25, top + 0.01))
        by_data.set(xlabel="sent uplink so far (MB, ideal bits)", xscale="log")
        for axes in (by_round, by_data):
            axes.grid(alpha=0.3)
        by_round.legend(fontsize=8, loc="lower right")
    return figure


def extra_rounds(row: dict) -> float | None:
    """Percent more rounds than FedAvg needs; None if the target was not reached."""
    needed = row["rounds_to_target"]
    return None if needed is None else 100 * (needed / row["rounds_of_fedavg"] - 1)


def best_text(data: str, rows: list[dict]) -> str:
    """Compression at the best gamma."""
    within = [row for row in rows if row["method"] not in ("fedavg", CLIPPED) and row["lost_mean"] <= 1]
    if not within:
        return f"{data}: no gamma within one point of FedAvg"
    best = min(within, key=lambda row: row["bits"])
    return f"{data}: {best['method']}, {32 / best['bits']:.0f} times less than float32"


def claims_of(data: str, rows: list[dict], seeds: int) -> list[Claim]:
    """What 2501.12046 says of scenario 1: is there a gamma of which all of it is true?"""
    private = [row for row in rows if row["method"] not in ("fedavg", CLIPPED)]
    private.sort(key=lambda row: row["bits"])
    tests = 2 * len(private)

    def cheap(row):
        """Bits vary so little over seeds that their mean is a number."""
        return all_of([below(row["losses"], 3, tests), row["saved"] >= 0.8])

    def text(row):
        extra = extra_rounds(row)
        more = "not within a point of FedAvg here" if extra is None else f"{extra:+.0f} % rounds"
        cost = f"{row['lost']} points lost, {row['saved']:.1%} less traffic"
        return f"{row['method']}: {cost}, {more} ({with_error(row['beyond'])})"

    whole = any_of(all_of([cheap(row), above(row["beyond"], 0, tests)]) for row in private)
    part = any_of(map(cheap, private))
    shown = [row for row in private if row["lost_mean"] <= 3] or private[-1:]
    return [
        Claim(
            "2501.12046",
            f"{data}: within a few points of FedAvg at 80-90 % less traffic and 10-15 % more rounds",
            "; ".join(map(text, shown)) + f"; loss and traffic alone: {verdict(part, seeds)}; {seeds} seeds",
            verdict(whole, seeds, part),
            "holds if one gamma loses at most 3 points at equal rounds, saves 80 % and has FedAvg's accuracy "
            "less one point in at most 15 % more rounds (in brackets: points beyond that at 15 %); "
            f"{tests} bounds of paired t tests, {TOGETHER}; uplink bits by ideal code length",
            SERVER_TRUSTED,
        ),
        *cause_of(data, rows, seeds),
    ]


def cause_of(data: str, rows: list[dict], seeds: int) -> list[Claim]:
    """With --clipped: is it the clip that costs what CEPAM loses, and its noise nothing?"""
    by_method = {row["method"]: row for row in rows}
    if CLIPPED not in by_method:
        return []
    clipped = by_method[CLIPPED]["accuracy"]
    private = {name: row for name, row in by_method.items() if name not in ("fedavg", CLIPPED)}
    tests = 1 + 2 * len(private)
    clips = above(by_method[CLIPPED]["losses"], 0.0, tests)
    least, _ = bounds(by_method[CLIPPED]["losses"], tests)
    claims = [
        Claim(
            "this project",
            f"{data}: the clip alone costs accuracy",
            f"{CLIPPED}: {by_method[CLIPPED]['lost']} points lost (at least {least:+.2f}); {seeds} seeds",
            verdict(clips, seeds),
            f"more than nothing; {tests} bounds of paired t tests, {TOGETHER}",
            NO_PRIVACY,
        )
    ]
    for name, row in private.items():
        same = differences({name: in_points(clipped, row["accuracy"])}, MARGIN, 1 + len(private))
        claims.append(
            Claim(
                "this project",
                f"{data}: the noise of {name} costs nothing beside the clip",
                f"points lost to {CLIPPED}: {same.measured}; {seeds} seeds",
                verdict(same.state, seeds),
                same.why,
                SERVER_TRUSTED,
            )
        )
    return claims


def define_flags():
    define_training_flags(("mnist", "fashion_mnist"))
    flags.DEFINE_list("gammas", ["100", "30", "10"], "Values of gamma.")
    flags.DEFINE_bool("clipped", False, "Also FedAvg with CEPAM's clip: what that costs without any noise.")
    flags.DEFINE_float(
        "clip", 0.0, "Norm that updates are clipped to, of which sigma is a gamma-th; 0: as configured."
    )


def main():
    f = flags.FLAGS
    gammas = cli.numbers("gammas")
    everything, rows, claims = {}, [], []
    for data in f.data:
        planned = f.rounds
        configs = {"fedavg": config_of(data, "fedavg")}
        if f.clipped:
            configs[CLIPPED] = config_of(data, "fedavg", mechanism__clip="l2")
        configs |= {f"gamma {g:g}": config_of(data, "cepam_gaussian", mechanism__gamma=g) for g in gammas}
        for name, config in configs.items():
            if f.clip and name != "fedavg":
                config.mechanism.clip_norm = f.clip
            config.eval_every = 2
            config.rounds = planned + planned // 4 * 2
        everything[data] = train_all(configs, f.seeds, f"{f.workdir}/runs/{data}", f.progress)
        rows += rows_of(data, everything[data], planned // 2 * 2)
        claims += claims_of(data, [row for row in rows if row["data"] == data], f.seeds)
    table = markdown(
        [
            "data",
            "method",
            "test accuracy",
            "points lost",
            "bits",
            "traffic saved",
            "rounds to within a point",
        ],
        [
            [
                row["data"],
                row["method"],
                spread(row["accuracy"]),
                "" if row["method"] == "fedavg" else row["lost"],
                f"{row['bits']:.3f}",
                f"{row['saved']:.1%}",
                row["rounds_to_target"] or "not reached",
            ]
            for row in rows
        ],
    )
    best = "; ".join(best_text(data, [row for row in rows if row["data"] == data]) for data in f.data)
    text = f"{settings_text(f.data, f.seeds)}{table}\n\nCompression at the best gamma: {best}."
    output.save(text, rows, plot(everything), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
