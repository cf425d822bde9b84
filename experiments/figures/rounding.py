"""Rounding at random or to the nearest level: which networks, and how many clients, need which (2405.13365)?

  python -m experiments.figures.rounding --workdir=/tmp/rounding

Bozorgasl and Chen report that stochastic rounding is two to four points better than deterministic rounding,
for one network. Rounding to the nearest level errs less (half the squared error inside the range), but its
error depends on the update, so that errors of alike updates do not average out over clients; rounding at
random errs independently. How much of that is left depends on the number of clients and on the network.
Here the same runs are made with both, seed by seed, for several networks and numbers of clients, who share
one training set. Then, on updates of real clients: how large the error of one message is, and what part of
it the mean over clients keeps; a part of 1 / clients is what independent errors keep.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax.errors import require
from cepam_jax.mechanisms import Keys, Knobs, clipped
from experiments import cli, output
from experiments.output import NO_PRIVACY, Claim
from experiments.paired import (
    MARGIN,
    TOGETHER,
    above,
    any_of,
    bounds,
    deviation,
    differences,
    in_points,
    spread,
    verdict,
    with_error,
)
from experiments.plots import marked, style
from experiments.real_updates import SETTINGS, updates
from experiments.runs import accuracies, config_of, define_training_flags, settings_text, train_all
from experiments.tables import markdown

ROUNDINGS = ("stochastic", "deterministic")
FLOATS = "float32"
CLAIMED = 2.0  # points that the paper says stochastic rounding is better by, at least
DRAWS = 8  # of the random rounding, for its error
SMOKE = {
    **{"data": ["digits"], "models": ["linear"], "clients": ["3"], "bits": ["2"]},
    **{"rounds": 3, "seeds": 2, "settings": ["digits mlp"]},
}


def trained(data: str) -> list[dict]:
    """A row for each network, number of clients, number of bits and rounding."""
    f, configs = flags.FLAGS, {}
    for model in f.models:
        for clients in cli.numbers("clients", int):
            base = {"model": model, "num_clients": clients}
            configs[model, clients, 32, FLOATS] = config_of(data, "fedavg", **base)
            for bits in cli.numbers("bits", int):
                for rounding in ROUNDINGS:
                    few = {"mechanism.bits": bits, "mechanism.rounding": rounding}
                    configs[model, clients, bits, rounding] = config_of(data, "clipped", **base, **few)
    named = {" ".join(map(str, key)): config for key, config in configs.items()}
    results = train_all(named, f.seeds, f"{f.workdir}/runs/{data}", f.progress)
    return [
        {
            **dict(zip(("data", "model", "clients", "bits", "rounding"), (data, *key), strict=True)),
            "accuracy": accuracies(runs).tolist(),
        }
        for key, runs in zip(configs, results.values(), strict=True)
    ]


def pairs(rows: list[dict], bits: int | None = None) -> dict[tuple, np.ndarray]:
    """{(model, clients, bits): points of stochastic rounding more than of deterministic rounding [seeds]}."""
    known = {tuple(row[key] for key in ("model", "clients", "bits", "rounding")): row for row in rows}
    return {
        key[:3]: in_points(row["accuracy"], known[(*key[:3], "deterministic")]["accuracy"])
        for key, row in known.items()
        if key[3] == "stochastic" and bits in (None, key[2])
    }


def claims_of(data: str, rows: list[dict]) -> list[Claim]:
    """Is one better by what the paper says anywhere, and are they equal everywhere?"""
    seeds = len(rows[0]["accuracy"])
    found = {
        f"{model}, {clients} clients, {bits} bits": v for (model, clients, bits), v in pairs(rows).items()
    }
    gains = [above(values, CLAIMED, len(found)) for values in found.values()]
    most = max(found, key=lambda name: bounds(found[name], len(found))[1])
    high = bounds(found[most], len(found))[1]
    same = differences(found, MARGIN)
    return [
        Claim(
            "2405.13365",
            f"{data}: for some network and number of clients stochastic is {CLAIMED:g} points better",
            f"largest bound: {most}: {with_error(found[most])} (at most {high:+.2f}); {seeds} seeds",
            verdict(any_of(gains), seeds),
            f"{len(found)} bounds of paired t tests, {TOGETHER}",
            NO_PRIVACY,
        ),
        Claim(
            "left open by 2405.13365",
            f"{data}: with every network and number of clients both roundings are equally accurate",
            f"points of stochastic rounding more: {same.measured}; {seeds} seeds",
            verdict(same.state, seeds),
            same.why,
            NO_PRIVACY,
        ),
    ]


def errors_of(taken, bits: int, rounding: str) -> tuple[float, float]:
    """Squared error of a message over the update's power, and of the clients' mean over that of a message."""
    mechanism, knobs = clipped(rounding, shapes=taken.shapes), Knobs(bits=jnp.float32(bits))

    @jax.jit
    def sent(key):
        keys = jax.random.split(key, len(taken.updates))
        one = lambda k, x: mechanism.decode(k, mechanism.encode(Keys(k, k), x, knobs), knobs)  # noqa: E731
        return jax.vmap(one)(keys, taken.updates) - taken.updates

    squares = []
    for draw in range(DRAWS if rounding == "stochastic" else 1):
        error = sent(jax.random.fold_in(jax.random.key(5), draw))
        squares.append((float(jnp.mean(error**2)), float(jnp.mean(error.mean(0) ** 2))))
    each, mean = np.mean(squares, axis=0)
    return each / float(jnp.mean(taken.updates**2)), mean / each


def measured_errors() -> list[dict]:
    rows = []
    for setting in flags.FLAGS.settings:
        for taken in updates(setting, flags.FLAGS.data_dir):
            for bits in cli.numbers("bits", int):
                for rounding in ROUNDINGS:
                    error, kept = errors_of(taken, bits, rounding)
                    where = {"updates": setting, "round": taken.round, "senders": len(taken.updates)}
                    row = {**where, "bits": bits, "rounding": rounding, "error": error, "kept": kept}
                    rows.append(row)
    return rows


def plot(rows: list[dict]) -> Figure:
    """Points of stochastic rounding more, against the number of clients; a panel for each number of bits."""
    widths = list(dict.fromkeys(row["bits"] for row in rows if row["rounding"] != FLOATS))
    figure = Figure(figsize=(4.2 * len(widths), 3.4), layout="constrained")
    names = list(dict.fromkeys((row["data"], row["model"]) for row in rows))
    for axes, bits in zip(
        figure.subplots(1, len(widths), sharey=True, squeeze=False)[0], widths, strict=True
    ):
        for number, (data, model) in enumerate(names):
            mine = [row for row in rows if (row["data"], row["model"]) == (data, model)]
            found = pairs(mine, bits)
            clients = [key[1] for key in found]
            axes.errorbar(
                clients,
                [values.mean() for values in found.values()],
                [deviation(values) / np.sqrt(len(values)) for values in found.values()],
                capsize=3,
                label=f"{data}, {model}",
                **style(number),
            )
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(xscale="log", xlabel="clients", title=f"{bits} bits")
        marked(axes, clients)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("points of stochastic rounding more")
    figure.axes[0].legend(fontsize=8)
    return figure


def define_flags():
    define_training_flags(("mnist",))
    flags.DEFINE_list("models", ["linear", "mlp", "cnn2"], "Networks.")
    flags.DEFINE_list(
        "clients", ["3", "30", "100"], "Numbers of clients, among whom the training set is split."
    )
    flags.DEFINE_list("bits", ["2", "4"], "Bits per coordinate.")
    flags.DEFINE_list("settings", ["mnist mlp", "mnist cnn2"], "Updates whose errors are measured.")


def main():
    f = flags.FLAGS
    cli.choices("settings", SETTINGS)
    for flag in ("models", "clients", "bits"):
        require(f[flag].value, f"--{flag}", f[flag].value, "a list with something in it")
    rows, claims = [], []
    for data in f.data:
        mine = trained(data)
        rows += mine
        claims += claims_of(data, mine)
    trainings = markdown(
        ["data", "model", "clients", "bits", "rounding", "test accuracy"],
        [
            [*(row[k] for k in ("data", "model", "clients", "bits", "rounding")), spread(row["accuracy"])]
            for row in rows
        ],
    )
    found = measured_errors()
    said = markdown(
        ["updates", "round", "bits", "rounding", "error over power", "kept by the mean", "of clients"],
        [
            [
                *(row[key] for key in ("updates", "round", "bits", "rounding")),
                f"{row['error']:.4f}",
                f"{row['kept']:.3f}",
                row["senders"],
            ]
            for row in found
        ],
    )
    text = f"{settings_text(f.data, f.seeds)}{trainings}\n\nErrors of real updates:\n\n{said}"
    output.save(text, [*rows, *found], plot(rows), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
