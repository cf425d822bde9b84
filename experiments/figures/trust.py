"""The price of trust: accuracy and bits at equal epsilon, by whom one must trust.

  python -m experiments.figures.trust --workdir=/tmp/trust
  python -m experiments.figures.trust --data=mnist --epsilons=8 --rounds=20 --workdir=/tmp/trust_mnist

A row is a mechanism under a trust model. Its noise is such that epsilon against the adversary whom that trust
model leaves is the row's target (client level, all rounds); the epsilons against everybody else are those of
the same runs' reports. FedAvg hides nothing. The distributed discrete Gaussian and Skellam noise are computed
by their papers' own accounting and not run: they have bits and an error, and no accuracy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax import mechanisms
from cepam_jax.errors import require
from cepam_jax.mechanisms import common_rotation
from cepam_jax.run import guarantees
from cepam_jax.theory import distributed_noise
from experiments import cli, output
from experiments.paired import spread
from experiments.plots import STYLES, marked
from experiments.runs import (
    accuracies,
    config_of,
    define_training_flags,
    finished,
    mean_of,
    settings_text,
    train_all,
)
from experiments.tables import markdown
from experiments.trust_claims import NOBODY, OWN_SDQ, SECURE, SERVER, SERVER_SDQ, SUM, claims_of


class Trust(NamedTuple):
    """A trust model.

    Attributes:
      trusted: who must be trusted, in words.
      adversary: the strongest that remains, whose epsilon is the target; "" for nobody.
      methods: names of `METHODS` that hold against it.
    """

    trusted: str
    adversary: str
    methods: tuple[str, ...]


CEPAM = ("CEPAM Z1", "CEPAM rotated E8", "split rotated E8")
LOSSY = "lossy secure sum"
# Name -> (variant, fields of the mechanism). SDQ at a scale of `STEP` deviations of the noise, on the lattice
# that does with less: Z1 where most integers are zero, E8 where they carry noise.
METHODS = {
    "FedAvg": ("fedavg", {}),
    SERVER_SDQ: ("server_sdq", {"rate": "step"}),
    "CEPAM Z1": ("cepam_gaussian", {}),
    "CEPAM rotated E8": ("cepam_rotated", {}),
    "split rotated E8": ("split", {"quantizer": "rotated", "lattice": "E8", "share": 0.8}),
    OWN_SDQ: ("noise_gaussian_sdq", {"lattice": "E8"}),
    SECURE: ("cepam_gaussian", {"name": "secure_sum"}),
    LOSSY: ("cepam_gaussian", {"name": "secure_sum"}),
}
STEP = 2.0
# Of "lossy secure sum", as parts of all clients: who may be missing, who may collude, who is missing.
BORNE, COLLUDERS, LOST = 0.2, 0.1, 0.1
MODELS = (
    Trust("everybody", "", ("FedAvg",)),
    Trust(SERVER, "released_model", (SERVER_SDQ, *CEPAM)),
    Trust("server", "decoded_updates", CEPAM),
    Trust(NOBODY, "server", ("split rotated E8", OWN_SDQ)),
    Trust(SUM, "server", (SECURE,)),
    Trust("a secure sum, most clients", "server_and_colluders", (LOSSY,)),
)
ADVERSARIES = ("released_model", "colluding_clients", "decoded_updates", "server", "server_and_colluders")
CLIENTS = {"digits": 100, "mnist": 300, "fashion_mnist": 300, "cifar10": 300}
NETWORKS = {"digits": "linear", "mnist": "linear", "fashion_mnist": "linear", "cifar10": "cnn2"}
SMOKE = {"seeds": 2, "rounds": 3, "clients": 20, "epsilons": ["8"]}


def config_for(data: str, method: str, adversary: str, target: float):
    """The configuration of one row, with the gamma that its adversary's epsilon asks for."""
    variant, fields = METHODS[method]
    config = config_of(data, variant, model=NETWORKS[data])
    config.num_clients = clients = flags.FLAGS.clients or CLIENTS[data]
    config.mechanism.update(fields)
    if method == LOSSY:
        survivors = clients - round(BORNE * clients)
        config.mechanism.secure.update(
            {"survivors": survivors, "colluders": round(COLLUDERS * clients), "lost": LOST}
        )
    if not adversary:
        return config
    config.privacy.target_epsilon, config.privacy.adversary = target, adversary
    config = guarantees.calibrated(config, np.ones(clients))
    config.mechanism.step = STEP * config.mechanism.clip_norm / config.mechanism.gamma
    return config


def variance(config) -> float:
    """Error of a round's sum for each message in it, per coordinate, with the server's noise."""
    knobs = jax.tree.map(lambda a: a[0], mechanisms.knobs_of(config))
    mechanism = mechanisms.build(config.mechanism, ((8,),))
    quantized = float(np.mean(np.asarray(mechanism.variance(jnp.zeros(8), knobs))))
    return quantized + (float(knobs.sigma) ** 2 if config.server.noise else 0.0)


def over_ideal(config, target: float, data: str) -> float:
    """Error of a round's mean over that of a trusted server's Gaussian noise at the target."""
    least = config_for(data, "CEPAM Z1", "released_model", target)
    return variance(config) / (1 - config.mechanism.secure.lost) / variance(least)


def measured(trust: Trust, method: str, target: float, config, runs, data: str) -> dict:
    """A row of finished runs; without an accuracy if one diverged."""
    last = [lines[-1] for lines in runs]
    whole = finished(runs).all()
    sent = [line for line in last if line["round"] > 0]
    epsilons = sent[0].get("epsilon", {}) if sent else {}
    return {
        "data": data,
        "trusted": trust.trusted,
        "against": trust.adversary,
        "method": method,
        "target": target,
        "gamma": float(config.mechanism.gamma) if trust.adversary else None,
        "over": over_ideal(config, target, data) if trust.adversary else None,
        "accuracies": accuracies(runs).tolist() if whole else None,
        "bits": mean_of(runs, "bits_per_coordinate"),
        "down": float(np.mean([_down(line) for line in sent])) if sent else float("nan"),
        "epsilons": {name: epsilons.get(name) for name in ADVERSARIES},
        "run": True,
    }


def _coordinates(line: dict) -> float:
    """How many coordinates all participants of all rounds sent."""
    return line["uplink_bits"] / line["bits_per_coordinate"]


def _down(line: dict) -> float:
    return line["downlink_bits"] / _coordinates(line)


def computed(data: str, target: float, coordinates: int, down: float) -> list[dict]:
    """Rows of the two papers' integer noise, at the least error over ideal of a few that they reach."""
    config = config_for(data, "CEPAM Z1", "released_model", target)
    clients, clip = config.num_clients, float(config.mechanism.clip_norm)
    ideal, width = clients * variance(config), common_rotation.width(coordinates)
    rows = []
    for method in distributed_noise.METHODS:
        for most in (1.04, 1.1, 1.25, 1.5, 2.0, 4.0):
            given = (method, target, clip, clients, coordinates, most * ideal, width, 1e-6)
            try:
                found = distributed_noise.choose(*given, config.privacy.delta, config.rounds)
            except ValueError:
                continue
            rows.append(
                {
                    "data": data,
                    "trusted": SUM,
                    "against": "server",
                    "method": f"{method} (formula)",
                    "target": target,
                    "gamma": clip / (found.granularity * found.deviation),
                    "over": float(found.error / ideal),
                    "accuracies": None,
                    "bits": float(found.bits),
                    "down": down,
                    "epsilons": {name: None for name in ADVERSARIES} | {"server": target},
                    "run": False,
                }
            )
            break
    return rows


def rows_of(data: str, targets: list[float], seeds: int, workdir: str, progress: bool) -> list[dict]:
    """All rows of a data set."""
    points = [
        (trust, method, target)
        for trust in MODELS
        for method in trust.methods
        if method in ("FedAvg", *flags.FLAGS.methods)
        for target in (targets if trust.adversary else [0.0])
    ]
    configs = {_label(*point): config_for(data, point[1], point[0].adversary, point[2]) for point in points}
    results = train_all(configs, seeds, f"{workdir}/runs/{data}", progress, keep_failures=True)
    rows = []
    for point in points:
        label = _label(*point)
        rows.append(measured(*point, configs[label], results[label], data))
    sent = [line for runs in results.values() for lines in runs for line in lines if line["round"] > 0]
    if not sent:  # every run diverged at once
        return rows
    clients = configs[_label(*points[0])].num_clients
    coordinates = round(_coordinates(sent[0]) / (clients * sent[0]["round"]))
    for target in targets:
        rows += computed(data, target, coordinates, _down(sent[0]))
    return rows


def _label(trust: Trust, method: str, target: float) -> str:
    return f"{method} for {trust.trusted} {target:g}"


_COLORS = {method: STYLES[number % len(STYLES)] for number, method in enumerate([*METHODS][1:])}
_LINES = {"released_model": "-", "decoded_updates": "--", "server": ":", "server_and_colluders": "-."}
_PANELS = {
    "released_model": "those who see the models",
    "decoded_updates": "those who see decoded updates",
    "server": "the server",
}


def plot(rows: list[dict]) -> Figure:
    """For each data set bits against the epsilon of each adversary, and accuracy at the target."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(10, 7.6 * len(names)), layout="constrained")
    parts = figure.subfigures(len(names), 1, squeeze=False).ravel()
    for part, name in zip(parts, names, strict=True):
        _plot_one(part, [row for row in rows if row["data"] == name])
    return figure


def _plot_one(figure, rows: list[dict]) -> None:
    """The panels of one data set."""
    mine, panels = [row for row in rows if row["against"]], figure.subplots(2, 2).ravel()
    keys = dict.fromkeys((row["method"], row["against"]) for row in mine)
    groups = [[row for row in mine if (row["method"], row["against"]) == key] for key in keys]
    for axes, adversary in zip(panels, _PANELS, strict=False):
        finite = [row["epsilons"][adversary] for row in mine if row["epsilons"][adversary]] or [1.0]
        none = 4 * max(finite)
        axes.axvspan(none / 2, none * 2, color="0.92")
        axes.text(none, 1.01, "none", ha="center", transform=axes.get_xaxis_transform(), fontsize=8)
        axes.set(xlim=(min(finite) / 1.6, none * 2), xlabel=f"epsilon against {_PANELS[adversary]}")
        axes.set(ylabel="bits up per coordinate", yscale="log")
        for group in groups:
            _draw(axes, group, adversary, none)
    for group in groups:
        each = [row for row in group if row["accuracies"]]
        x, y = [row["target"] for row in each], [np.mean(row["accuracies"]) for row in each]
        label = f"{group[0]['method']} (against {group[0]['against'].replace('_', ' ')})"
        panels[3].plot(x, y, **_look(group[0]), markersize=4, label=label)
    for free in (row for row in rows if not row["against"] and row["accuracies"]):
        panels[3].axhline(np.mean(free["accuracies"]), color="0.5", lw=1)
    panels[3].set(xlabel="epsilon against whom the legend names", ylabel="test accuracy")
    for axes in panels:
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
    marked(panels[3], sorted({row["target"] for row in mine}))
    handles, labels = panels[3].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    title = f"{rows[0]['data']}; full marks: the noise is chosen for this panel's adversary"
    figure.suptitle(title, fontsize=10)


def _look(row: dict) -> dict:
    """How a row's line is drawn: colour by mechanism, line by adversary."""
    color, _, mark = _COLORS.get(row["method"], ("0.4", "", "x" if "skellam" in row["method"] else "+"))
    return {"color": color, "marker": mark, "linestyle": _LINES[row["against"]]}


def _draw(axes, rows: list[dict], adversary: str, none: float) -> None:
    """One mechanism at all targets in the panel of an adversary; where nothing is known it is left out."""
    given = [row["epsilons"][adversary] for row in rows]
    if not rows[0]["run"] and None in given:
        return
    look = _look(rows[0]) | ({} if None not in given else {"linestyle": "none"})
    axes.plot(
        [none if value is None else value for value in given],
        [row["bits"] for row in rows],
        **look,
        markersize=6,
        fillstyle="full" if rows[0]["against"] == adversary else "none",
    )


def table(rows: list[dict]) -> str:
    """The figures in Markdown."""

    def epsilon(row, name):
        value = row["epsilons"][name]
        if value is None:
            # A formula says nothing of others; a run without colluders in its settings says nothing of them.
            known = row["run"] and name != "server_and_colluders"
            return "none" if known else ""
        return f"{value:.3g}"

    header = ["trusted", "mechanism", "epsilon", "against", "test accuracy", "bits up", "bits down"]
    header += ["error over ideal", *(f"epsilon, {name.replace('_', ' ')}" for name in ADVERSARIES)]
    return markdown(
        header,
        [
            [
                row["trusted"],
                row["method"],
                f"{row['target']:g}" if row["target"] else "none",
                row["against"].replace("_", " "),
                spread(row["accuracies"]) if row["accuracies"] else "diverged" if row["run"] else "",
                f"{row['bits']:.3f}",
                f"{row['down']:.0f}",
                f"{row['over']:.3g}" if row["over"] else "",
                *(epsilon(row, name) for name in ADVERSARIES),
            ]
            for row in sorted(rows, key=lambda row: (row["data"], row["target"]))
        ],
    )


def define_flags():
    define_training_flags(("digits",), seeds=5)
    flags.FLAGS.set_default("rounds", 40)
    flags.DEFINE_list("epsilons", ["1", "3", "8"], "Targets of all rounds, at delta 1e-5.")
    flags.DEFINE_list("methods", [*METHODS][1:], "Mechanisms beside FedAvg.")
    flags.DEFINE_integer("clients", 0, "All of whom take part; 0: 100 for digits, 300 else.", lower_bound=0)


def main():
    f = flags.FLAGS
    require(f.clients == 0 or f.clients >= 10, "--clients", f.clients, "0 or at least 10")
    cli.choices("methods", METHODS)
    rows, claims = [], []
    for data in f.data:
        mine = rows_of(data, cli.numbers("epsilons"), f.seeds, f.workdir, f.progress)
        rows += mine
        claims += claims_of(data, mine, f.seeds)
    text = settings_text(f.data, f.seeds) + (
        "Error over ideal: of a round's mean, beside a trusted server's Gaussian noise at the same epsilon. "
        "(formula): by the paper's own accounting, computed and not run.\n\n"
    )
    output.save(text + table(rows), rows, plot(rows), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
