"""From the link to the accuracy: wall-clock time of training on slow and fast links, both directions counted.

  python -m experiments.figures.links --workdir=/tmp/links

Every method is trained with the model sent in full and with a compressed downlink. Times are computed
afterwards from the length of every message, with rounds that end with the slowest client; nothing is counted
for computing, and nothing for the model before training, which follows from a public seed. The target is
95 % of the final accuracy of float32 with the same seed. The finished model of the first seed becomes the
packed file of experiments/export.py, for the device. Beside it: the largest model that a link trains in a
given time, and who misses a deadline with one gamma for all or with gammas by `config.needs`.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cepam_jax.errors import require, require_choice
from cepam_jax.federated.links import PRESETS, Links, phones
from cepam_jax.run import finished
from experiments import cli, exported, output
from experiments.links import clock, duration, rounds_of, seconds_to
from experiments.output import Claim
from experiments.paired import below, bounds, in_points, points, spread, verdict
from experiments.plots import band
from experiments.runs import (
    DATA,
    accuracies,
    config_of,
    coordinates_of,
    define_training_flags,
    mean_of,
    settings_text,
    train_all,
)
from experiments.tables import markdown

METHODS = {
    "float32": ("fedavg", {}),
    "float16": ("fedavg", {"mechanism__name": "float16"}),
    "clipped 4 bits": ("clipped", {}),
    "binarization": ("binary", {}),
    "top-k": ("top_k", {}),
    "CEPAM gamma 100": ("cepam_gaussian", {}),
    "CEPAM gamma 30": ("cepam_gaussian", {"mechanism__gamma": 30.0}),
    "CEPAM gamma 10": ("cepam_gaussian", {"mechanism__gamma": 10.0}),
}
# Two bits for each of the largest 5 % of what the model changed by.
_LARGEST = {"sparsify": "top_k", "fraction": 0.05, "name": "clipped", "bits": 2}
BROADCASTS = {"full": {}, "compressed": {f"downlink__{name}": value for name, value in _LARGEST.items()}}
LINKS = ("radio10k", "radio100k", "3g", "phones", "ethernet10g")
SHOWN = ("float32 full", "float16 full", "clipped 4 bits compressed", "top-k compressed")
SHARE = 0.95  # of float32's final accuracy
RATE = 2.4  # bits for each weight of the finished model's packed file, of the first seed
SPANS = {"an hour": 3600.0, "a day": 86_400.0, "a week": 604_800.0}
CHECKED = "clipped 4 bits compressed"  # whose closed form is held against simulated points
SIZED = ("float32 full", CHECKED, "CEPAM gamma 30 compressed")  # of which the largest models are told


def configs_of(data: str, methods: list[str]):
    """{label: configuration} of every method with both broadcasts; the linear model beside them."""
    every = max(1, min(2, cli.flags.FLAGS.rounds // 2))
    found = {}
    for name in methods:
        variant, changes = METHODS[name]
        for kind, down in BROADCASTS.items():
            same = {"downlink__start": "seed", "eval_every": every}
            found[f"{name} {kind}"] = config_of(data, variant, **changes, **down, **same)
    linear = found[CHECKED].copy_and_resolve_references()
    linear.model = "linear"
    return found | {"linear": linear}


def known_links(name: str, clients: int) -> Links:
    """A preset for the clients of these runs."""
    return PRESETS[name](clients, 0)


class Measured:
    """What all runs of one setting took.

    Attributes:
      runs: lines of metrics.jsonl of each seed.
      up, down: f64[seeds], bits of all clients in the whole run.
      times: link -> [seeds, lines], seconds from the beginning.
    """

    def __init__(self, runs, clients: int):
        self.runs = runs
        sent = [rounds_of(lines, clients, 0) for lines in runs]
        self.up, self.down = (np.array([getattr(one, way).sum() for one in sent]) for way in ("up", "down"))
        self.times = {
            name: np.array([clock(lines, known_links(name, clients), clients, 0) for lines in runs])
            for name in LINKS
        }

    def seconds(self, link: str, targets) -> np.ndarray:
        """f64[seeds], seconds to a target of each seed."""
        return np.array(
            [
                seconds_to(target, lines, times)
                for target, lines, times in zip(targets, self.runs, self.times[link], strict=True)
            ]
        )

    def rounds(self, targets) -> float:
        """Rounds to the targets, the mean over seeds."""
        return float(
            np.mean(
                [
                    seconds_to(target, lines, [line["round"] for line in lines])
                    for target, lines in zip(targets, self.runs, strict=True)
                ]
            )
        )


def row(label: str, one: Measured, targets, sent_by_float32, folder: Path) -> dict:
    """What the table shows of one setting, whose runs have folders under this one."""
    method, broadcast = label.rsplit(" ", 1)
    size, lost = exported.packed_size(finished.load(folder / label.replace(" ", "_") / "seed0"), RATE)
    return {
        "file": size,
        "lost by rounding": 100 * lost,
        "method": method,
        "broadcast": broadcast,
        "accuracy": accuracies(one.runs).tolist(),
        "up": (one.up / 8e6).tolist(),
        "down": (one.down / 8e6).tolist(),
        "less": (sent_by_float32 / (one.up + one.down)).tolist(),
        "rounds": one.rounds(targets),
        "seconds": {name: one.seconds(name, targets).tolist() for name in LINKS},
    }


def end_to_end(rows) -> str:
    """The table of all methods."""
    header = ["method", "model down", "accuracy", "MB up", "MB down", "less than float32", "rounds", *LINKS]
    header += ["bytes of the model's file", "points lost by it"]
    cells = [
        [
            one["method"],
            one["broadcast"],
            spread(one["accuracy"]),
            f"{np.mean(one['up']):.4g}",
            f"{np.mean(one['down']):.4g}",
            f"{np.mean(one['less']):.4g}x",
            f"{one['rounds']:.3g}",
            *(duration(float(np.mean(one["seconds"][name]))) for name in LINKS),
            f"{one['file']:,}",
            f"{one['lost by rounding']:+.2f}",
        ]
        for one in rows
    ]
    return markdown(header, cells)


def largest_model(seconds: float, rounds: float, up: float, down: float, link: Links) -> float:
    """Coordinates of the largest model whose rounds end in time, on equal links without latency.

    Args:
      seconds: that there are.
      rounds: to the target.
      up, down: bits per coordinate and participant of a round.
      link: rates as numbers.
    """
    return seconds / (rounds * (up / link.up + down / link.down))


def bits_of(one: Measured, coordinates: int, clients: int) -> tuple[float, float]:
    """Bits per coordinate and participant of a round, up and down."""
    messages = one.runs[0][-1]["round"] * clients * coordinates
    return float(one.up.mean() / messages), float(one.down.mean() / messages)


def sizes_of(configs) -> dict[str, int]:
    """Coordinates of the two models that are trained."""
    return {"linear": coordinates_of(configs["linear"]), "mlp": coordinates_of(configs[CHECKED])}


def models_text(rows, measured, coordinates: dict[str, int], clients: int) -> tuple[str, list[Claim]]:
    """The largest models, and the closed form beside simulated points."""
    cells = []
    for one in rows:
        label = f"{one['method']} {one['broadcast']}"
        if label not in SIZED or math.isinf(one["rounds"]):
            continue
        up, down = bits_of(measured[label], coordinates["mlp"], clients)
        for name in ("radio10k", "radio100k", "3g", "ethernet10g"):
            rate = float(known_links(name, 1).up[0])
            sizes = [
                largest_model(seconds, one["rounds"], up, down, Links(rate, rate))
                for seconds in SPANS.values()
            ]
            cells.append([one["method"], one["broadcast"], name, *(f"{size:.3g}" for size in sizes)])
    table = markdown(["method", "model down", "link", *(f"in {span}" for span in SPANS)], cells)
    up, down = bits_of(measured[CHECKED], coordinates["mlp"], clients)
    claims = []
    # Of another model: with the bits of the mlp's own messages the mlp's time would come back by definition.
    one = measured["linear"]
    rounds = one.runs[0][-1]["round"]
    found = largest_model(float(one.times["radio100k"][:, -1].mean()), rounds, up, down, Links(1e5, 1e5))
    off = found / coordinates["linear"] - 1
    claims.append(
        Claim(
            "closed form",
            f"a model of {coordinates['linear']:,} coordinates (linear) takes its {rounds} rounds at 100 "
            "kbit/s as long as the closed form says, with the bits per coordinate of the mlp",
            f"in that time the closed form trains one of {found:,.0f} ({100 * off:+.1f} %)",
            verdict(abs(off) < 0.1, len(one.runs)),
            "within 10 %: what tensors have of their own, such as ranges, differs from model to model",
            "the server is trusted; both directions",
        )
    )
    return table, claims


def goals(rows) -> list[Claim]:
    """The three goals of this project for CEPAM with a compressed broadcast."""
    found = {f"{one['method']} {one['broadcast']}": one for one in rows}
    claims = []
    for name in [name for name in METHODS if name.startswith("CEPAM") and f"{name} full" in found]:
        two, one, base = found[f"{name} compressed"], found[f"{name} full"], found["float32 full"]
        seeds = len(two["accuracy"])
        ratio = np.array(base["seconds"]["radio100k"]) / np.array(two["seconds"]["radio100k"])
        claims.append(
            _factor(
                f"{name}, compressed: at least 50 times sooner than float32 at 100 kbit/s, to "
                f"{100 * SHARE:g} % of its accuracy",
                ratio,
                50,
                seeds,
            )
        )
        claims.append(
            _factor(
                f"{name}, compressed: 100 times less traffic than float32, both ways, equal rounds",
                np.array(two["less"]),
                100,
                seeds,
            )
        )
        loss = in_points(one["accuracy"], two["accuracy"])
        low, high = bounds(loss, 1)
        claims.append(
            Claim(
                "goal",
                f"{name}: two-way compression at most half a point below uplink alone, at equal rounds",
                f"{points(two['accuracy'], one['accuracy'])} points; {seeds} seeds",
                verdict(below(loss, 0.5), seeds),
                f"{low:+.2f} to {high:+.2f} points lost, bounds at 95 % each",
                "the server is trusted; both directions",
            )
        )
    return claims


def _factor(text: str, ratios, least: float, seeds: int) -> Claim:
    """A claim about a factor, by the mean of its logarithm over seeds; 0: what never came is not sooner."""
    finite = np.isfinite(ratios).all() and (ratios > 0).all()
    low, high = bounds(np.log(ratios), 1) if finite else (-math.inf, math.inf)
    if not ratios.any():
        high = -math.inf
    measured = f"not reached by all of {seeds} seeds"
    if finite:
        mean = np.exp(np.log(ratios).mean())
        measured = f"{mean:.4g} times ({ratios.min():.4g} to {ratios.max():.4g}); {seeds} seeds"
    return Claim(
        "goal",
        text,
        measured,
        verdict(True if low > math.log(least) else False if high < math.log(least) else None, seeds),
        f"{math.exp(low):.4g} to {math.exp(high):.4g} times, bounds at 95 % each of the mean logarithm",
        "the server is trusted; both directions",
    )


def payloads() -> tuple[str, list[Claim]]:
    """What a model of 1.5 billion parameters takes on the links of the papers."""
    size = 1.5e9 * 4
    rates = {"10 Gbit/s": 1e10, "3 Mbit/s": 3e6, "10 kbit/s": 1e4}
    cells = [
        [name, *(duration(8 * one / rate) for one in (size, size / 2, size / 10))]
        for name, rate in rates.items()
    ]
    table = markdown(["1.5 billion parameters", "float32", "float16", "ten times smaller"], cells)
    claim = Claim(
        "plan",
        "a model of 1.5 billion parameters is 5.58 GB",
        f"{size / 1e9:.2f} GB in float32, which is {size / 2**30:.2f} GiB",
        "holds" if abs(size / 2**30 - 5.58) < 0.02 else "does not hold",
        "counted, in units of 2^30 bytes",
        "sizes alone",
    )
    return table, [claim]


def deadline_configs(deadline: float):
    """Digits on links that differ by the law of the phones, with a deadline: one gamma, or by needs."""
    base = config_of("digits", "cepam_gaussian", model="linear", downlink__start="seed")
    clients = base.num_clients
    rates = phones(clients, 1)
    up = tuple((1e5 * rates.up / np.median(rates.up)).tolist())
    base.update_from_flattened_dict(
        {
            "links.name": "arrays",
            "links.up": up,
            "links.down": (1e12,) * clients,
            "links.ends": "deadline",
            "links.deadline": deadline,
            "eval_every": max(1, base.rounds // 4),
        }
    )
    needs = base.copy_and_resolve_references()
    needs.needs.rate = up
    needs.needs.deadline = (0.999 * deadline,) * clients  # the rest is for the way down
    waits = base.copy_and_resolve_references()
    waits.links.ends, waits.links.deadline = "slowest", 0.0
    return {"gamma 100, all waited for": waits, "gamma 100 for all": base, "gammas by needs": needs}


def deadline_table(results) -> tuple[str, list[dict]]:
    """Who was late, by rule."""
    rows = [
        {
            "gammas": label,
            "late": mean_of(runs, "late_per_round") if "late_per_round" in runs[0][-1] else 0.0,
            "seconds": float(np.mean([sum(line["link_seconds"] for line in run[1:]) for run in runs])),
            "accuracy": accuracies(runs).tolist(),
        }
        for label, runs in results.items()
    ]
    header = ["gammas", "late of 10 in a round", "seconds of all rounds", "test accuracy"]
    cells = [[r["gammas"], f"{r['late']:.2f}", f"{r['seconds']:.3g}", spread(r["accuracy"])] for r in rows]
    return markdown(header, cells), rows


def plot(measured):
    """Accuracy against seconds, link by link."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True).flat
    shown = [
        label
        for label in (*SHOWN, *(f"{n} compressed" for n in METHODS if "CEPAM" in n))
        if label in measured
    ]
    for name, place in zip(LINKS, axes, strict=False):
        for number, label in enumerate(shown):
            one = measured[label]
            values = np.array([[line["accuracy"] for line in lines[1:]] for lines in one.runs])
            band(place, one.times[name].mean(0)[1:], values, label, number)
        place.set(title=name, xscale="log", xlabel="seconds")
    for place in (axes[0], axes[3]):
        place.set_ylabel("test accuracy")
    last = axes[5]
    last.axis("off")
    last.legend(*axes[0].get_legend_handles_labels(), loc="center", fontsize="small")
    return figure


def check_choices(methods: list[str]) -> None:
    """Checks the data set and the methods before anything is trained."""
    data = cli.flags.FLAGS.data
    require(len(data) == 1, "--data", data, f"one data set, of {', '.join(DATA)}")
    for name in methods:
        require_choice("--methods", name, METHODS)
    needed = ("float32", "clipped 4 bits")
    require(set(needed) <= set(methods), "--methods", methods, f"a list with {' and '.join(needed)}")


def main():
    f = cli.flags.FLAGS
    methods = f.methods or list(METHODS)
    check_choices(methods)
    workdir, (data,) = Path(f.workdir), f.data
    configs = configs_of(data, methods)
    clients = configs["float32 full"].num_clients
    results = train_all(configs, f.seeds, workdir / data, f.progress)
    measured = {label: Measured(runs, clients) for label, runs in results.items()}
    base = measured["float32 full"]
    targets = SHARE * accuracies(base.runs)
    labels = [label for label in measured if label != "linear"]
    sent = base.up + base.down
    rows = [row(label, measured[label], targets, sent, workdir / data) for label in labels]
    models, closed = models_text(rows, measured, sizes_of(configs), clients)
    sizes, seed_claims = payloads()
    deadlines, late = deadline_table(
        train_all(deadline_configs(f.deadline), f.seeds, workdir / "deadline", f.progress)
    )
    text = "\n\n".join([settings_text([data], f.seeds) + end_to_end(rows), models, deadlines, sizes])
    claims = [*goals(rows), *closed, *seed_claims]
    output.save(text, [*rows, *late], plot(measured), claims)


def define_flags():
    define_training_flags(("mnist",))
    cli.flags.DEFINE_float(
        "deadline", 0.02, "Seconds of a round of digits, over links of some 100 kbit/s, in the last table."
    )
    cli.flags.DEFINE_list(
        "methods", [], f"Of {', '.join(METHODS)}; float32 and clipped 4 bits must be there."
    )


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        smoke={"data": ["digits"], "seeds": 1, "rounds": 4, "methods": ["float32", "clipped 4 bits"]},
    )
