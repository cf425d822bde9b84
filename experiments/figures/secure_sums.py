"""Secure sums at equal epsilon: bits, error, wrapping around, dropouts and cost, beside other kinds of trust.

  python -m experiments.figures.secure_sums --workdir=/tmp/secure_sums

One round of real messages whose mean is wanted, at equal epsilon of one round: against the server for the
secure sum and for noise of each client's own, against those who see the model for CEPAM, which trusts the
server with every update. Rounds of all methods take turns, so that their times can be compared.

Further tables: how often coordinates wrap around, beside the chance that is stated, for updates that all
agree; what becomes of rounds in which messages are missing; and what the exact error of the aggregate
Gaussian saves and costs beside plain rounding.
"""

import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from cepam_jax import mechanisms, privacy
from cepam_jax.federated import summed
from cepam_jax.mechanisms import aggregate_gaussian, common_rotation, irwin_hall
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from cepam_jax.theory import distributed_noise
from configs import digits
from experiments import cli, output
from experiments.given_updates import arrays_of, round_of
from experiments.plots import marked, style
from experiments.tables import markdown

SMOKE = {"clients": ["10"], "epsilons": ["3"], "coordinates": 500, "repeats": 2}
# Name -> (whom epsilon is against, fields of the mechanism).
METHODS = {
    "secure sum": ("server", {"name": "secure_sum"}),
    "secure sum, cells 3": ("server", {"name": "secure_sum", "secure.cells": 3.0}),
    "CEPAM Z1 (trusted server)": ("released_model", {"name": "lrsuq"}),
    "noise of one's own + SDQ": ("server", {"name": "noise_sdq"}),
}
WRAPS = (0.1, 0.01, 0.001)  # stated chances that a sum leaves its modulus
DROPOUTS = {"clients": 10, "survivors": 8, "lost": 0.2}


class Setting(NamedTuple):
    """A method at one epsilon, ready to run.

    Attributes:
      mechanism, knobs: as of a configuration with clients that each send `coordinates` numbers.
      gamma: what the epsilon asks for.
      epsilons: adversary -> epsilon of a round.
    """

    mechanism: mechanisms.Mechanism
    knobs: mechanisms.Knobs
    gamma: float
    epsilons: dict[str, float]


def setting_of(method: str, clients: int, epsilon: float, coordinates: int, **secure) -> Setting:
    """A method at one epsilon; `secure` are fields of config.mechanism.secure."""
    adversary, fields = METHODS[method]
    fields = fields | {f"secure.{name}": value for name, value in secure.items()}
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict({f"mechanism.{name}": value for name, value in fields.items()})
    config.num_clients, config.rounds = clients, 1
    config.privacy.target_epsilon, config.privacy.adversary = epsilon, adversary
    counts = np.ones(clients, int)
    config = guarantees.calibrated(config, counts)
    config.privacy.target_epsilon = 0.0
    config.mechanism.step = (
        config.mechanism.clip_norm / config.mechanism.gamma
    )  # of SDQ: as wide as the noise
    validate(config)
    rows = privacy.report(guarantees.federation_of(config, counts), config.privacy.delta)
    return Setting(
        mechanisms.build(config.mechanism, ((coordinates,),)),
        mechanisms.knobs_of(config),
        float(config.mechanism.gamma),
        {row.adversary: float(row.epsilon.max()) for row in rows},
    )


def updates_of(clients: int, coordinates: int) -> np.ndarray:
    """f32[clients, coordinates] of norm 1 that agree in half of their square, with heavy tails."""
    random = np.random.default_rng(0)
    heavy = random.standard_t(3, (clients + 1, coordinates))
    directions = heavy / np.linalg.norm(heavy, axis=1, keepdims=True)
    mixed = directions[1:] + directions[0]
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def program(setting: Setting, updates: np.ndarray):
    """(compiled round, State, ClientArrays) whose clients send these updates."""
    run, state = round_of(setting.mechanism, setting.knobs, *updates.shape)
    arrays = arrays_of(updates, setting.knobs)
    return jax.jit(run).lower(state, arrays).compile(), state, arrays


def measure(clients: int, epsilon: float, coordinates: int, repeats: int) -> list[dict]:
    """What rounds of each method cost and how far their means are from that of the updates.

    The first round of each is not timed; the others take turns.
    """
    updates = updates_of(clients, coordinates)
    settings = {method: setting_of(method, clients, epsilon, coordinates) for method in METHODS}
    programs = {method: program(setting, updates) for method, setting in settings.items()}
    found = {method: {"squares": [], "bits": [], "wrapped": [], "seconds": []} for method in METHODS}
    mean = updates.astype(np.float64).mean(0)
    for number in range(repeats + 1):
        for method, (run, state, arrays) in programs.items():
            begin, mine = state._replace(round=jnp.int32(number)), found[method]
            start = time.perf_counter()
            after, report = jax.block_until_ready(run(begin, arrays))
            mine["seconds"].append(time.perf_counter() - start)
            error = np.asarray(after.params["w"], np.float64) - mean
            mine["squares"].append(np.mean(error**2))
            mine["bits"].append(float(np.mean(report.participants.bits)) / coordinates)
            mine["wrapped"].append(_wrapped(settings[method], arrays, begin, error, clients))
    rows = []
    for method, mine in found.items():
        setting, memory = settings[method], programs[method][0].memory_analysis()
        rows.append(
            {
                "method": method,
                "against": METHODS[method][0],
                "clients": clients,
                "epsilon": epsilon,
                "gamma": setting.gamma,
                "epsilons": setting.epsilons,
                "bits": float(np.mean(mine["bits"])),
                # Beside the least possible: that of a trusted server's Gaussian noise for the same epsilon.
                "error": float(np.mean(mine["squares"])),
                "ideal": 1 / (clients * setting.gamma**2),
                "wrapped": None if setting.mechanism.joint is None else float(np.mean(mine["wrapped"])),
                "seconds": float(np.median(mine["seconds"][1:])),
                "mebibytes": None if memory is None else memory.temp_size_in_bytes / 2**20,
            }
        )
    return rows


def _wrapped(setting, arrays, state, error, clients) -> float:
    """Part of the coordinates whose sum left the modulus: it is wrong by more than half of that."""
    joint, knobs = setting.mechanism.joint, jax.tree.map(lambda a: a[0], setting.knobs)
    if joint is None:
        return 0.0
    modulus = 2.0 ** int(joint.bits(knobs, clients, len(error)))
    turned = common_rotation.rotate(
        summed.common_key(arrays, state), jnp.asarray(error * clients, jnp.float32)
    )
    step = float(knobs.sigma) / setting.mechanism.about.summed.cells
    return float(np.mean(np.abs(np.asarray(turned)) > step * modulus / 2))


def wraps(clients: int, epsilon: float, coordinates: int, repeats: int, stated: float) -> dict:
    """How often a coordinate of the sum leaves the modulus, and one that is half as large (a bit less).

    All clients send the same update, of the largest norm: no sum is longer.
    """
    setting = setting_of("secure sum", clients, epsilon, coordinates, wrap=stated)
    updates = np.repeat(updates_of(1, coordinates), clients, 0)
    joint, rates = setting.mechanism.joint, []
    for less in (0, 1):
        fewer = joint._replace(bits=lambda *given, less=less: joint.bits(*given) - less)
        one = setting._replace(mechanism=setting.mechanism._replace(joint=fewer))
        run, state, arrays = program(one, updates)
        found = []
        for number in range(repeats):
            begin = state._replace(round=jnp.int32(number))
            after, _ = run(begin, arrays)
            error = np.asarray(after.params["w"], np.float64) - updates[0]
            found.append(_wrapped(one, arrays, begin, error, clients))
        rates.append(float(np.mean(found)))
    first = jax.tree.map(lambda a: a[0], setting.knobs)
    return {
        "clients": clients,
        "epsilon": epsilon,
        "stated": stated,
        "bits": int(joint.bits(first, clients, coordinates)),
        "coordinates": repeats * coordinates,
        "rate": rates[0],
        "rate with a bit less": rates[1],
    }


def table_of_wraps(rows) -> str:
    header = ["clients", "epsilon", "stated", "bits", "measured", "measured with a bit less"]
    return markdown(
        header,
        [
            [
                *(row["clients"], f"{row['epsilon']:g}", f"{row['stated']:g}", row["bits"]),
                *(f"{row[name]:.2g}" for name in ("rate", "rate with a bit less")),
            ]
            for row in rows
        ],
    )


def dropouts(epsilon: float, coordinates: int, rounds: int) -> list[dict]:
    """Rounds by how many of their messages are missing: whether the sum is opened, and its error."""
    clients, survivors, lost = DROPOUTS.values()
    setting = setting_of("secure sum", clients, epsilon, coordinates, survivors=survivors, lost=lost)
    updates, grouped = updates_of(clients, coordinates), {}
    run, state, arrays = program(setting, updates)
    each = float(setting.mechanism.variance(jnp.zeros(8), jax.tree.map(lambda a: a[0], setting.knobs)))
    for number in range(rounds):
        after, report = run(state._replace(round=jnp.int32(number)), arrays)
        arrived, moved = np.asarray(report.participants.weight) > 0, np.asarray(after.params["w"], np.float64)
        found = bool(report.opened), bool(moved.any()), math.nan
        if found[0]:
            error = moved - updates[arrived].astype(np.float64).mean(0)
            found = (*found[:2], np.mean(error**2) / (each / arrived.sum()))
        grouped.setdefault(int(clients - arrived.sum()), []).append(found)
    return [
        {
            "clients": clients,
            "survivors": survivors,
            "missing": missing,
            "rounds": len(found),
            "opened": sum(one for one, _, _ in found),
            "moved": sum(one for _, one, _ in found),
            "over": float(np.mean([over for _, _, over in found])),
        }
        for missing, found in sorted(grouped.items())
        if missing <= clients - survivors + 1
    ]


def table_of_dropouts(rows) -> str:
    header = ["missing", "rounds", "opened", "moved the model", "MSE over that of those who came"]
    return markdown(
        header,
        [
            [
                *(row["missing"], row["rounds"], row["opened"], row["moved"]),
                "" if math.isnan(row["over"]) else f"{row['over']:.3f}",
            ]
            for row in rows
        ],
    )


def plot(rows):
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    most = max(row["clients"] for row in rows)
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = [row for row in rows if row["method"] == method and row["clients"] == most]
        x = [row["epsilon"] for row in mine]
        panels[0].plot(x, [row["bits"] for row in mine], label=method, **style(number))
        panels[1].plot(x, [row["error"] for row in mine], label=method, **style(number))
    panels[0].set(ylabel="bits per coordinate", ylim=(0, None))
    panels[1].set(ylabel="mean squared error of a coordinate", yscale="log")
    for axes in panels:
        axes.set(xlabel=f"epsilon of a round, {most} clients", xscale="log")
        axes.grid(alpha=0.3)
        marked(axes, sorted({row["epsilon"] for row in rows}))
    panels[0].legend(fontsize=8)
    return figure


def table(rows) -> str:
    header = [
        *("method", "clients", "epsilon", "against", "gamma", "bits", "MSE", "MSE over its noise"),
        *("wrapped", "s per round", "MiB"),
    ]
    return markdown(
        header,
        [
            [
                row["method"],
                row["clients"],
                f"{row['epsilon']:g}",
                row["against"].replace("_", " "),
                f"{row['gamma']:.3g}",
                f"{row['bits']:.2f}",
                f"{row['error']:.3g}",
                f"{row['error'] / row['ideal']:.3f}",
                "" if row["wrapped"] is None else f"{row['wrapped']:.1e}",
                f"{row['seconds']:.3f}",
                "" if row["mebibytes"] is None else f"{row['mebibytes']:.1f}",
            ]
            for row in rows
        ],
    )


def exact(clients: int, coordinates: int, cells: float = 1.5) -> dict:
    """The aggregate Gaussian of so many clients: its parts, and the bits that narrower cells take."""
    parts = irwin_hall.parts(clients)
    turn = jax.jit(aggregate_gaussian.draw, static_argnums=(1, 2))(jax.random.key(0), clients, coordinates)
    scale = np.asarray(turn.scale, np.float64)
    return {
        "clients": clients,
        "share": parts.share,
        "scale": parts.scale,
        "split": float(np.mean(scale < scale.max())),
        "bits": float(-np.mean(np.log2(scale))),
        "rounding": 1 / (12 * cells**2),
        "distance": aggregate_gaussian.total_variation(clients),
    }


def table_of_exact(rows) -> str:
    header = ["clients", "plain", "their scale", "bits more", "Gaussian rounding", "total variation"]
    return markdown(
        header,
        [
            [
                row["clients"],
                f"{row['share']:.4f}",
                f"{row['scale']:.3f}",
                f"{row['bits']:.3f}",
                f"{100 * row['rounding']:.1f} %",
                f"{row['distance']:.1e}",
            ]
            for row in rows
        ],
    )


def peers(clients: int, epsilon: float, coordinates: int) -> list[dict]:
    """Bits that the accounting of two papers asks for at the same epsilon, at the least error it reaches."""
    gamma = setting_of("secure sum", clients, epsilon, coordinates).gamma
    ideal, width = clients / gamma**2, common_rotation.width(coordinates)
    rows = []
    for method in distributed_noise.METHODS:
        for most in (1 + 1 / (12 * 1.5**2), 1.1, 1.25, 1.5):
            given = (method, epsilon, 1.0, clients, coordinates, most * ideal, width, 1e-6, 1e-5)
            try:
                found = distributed_noise.choose(*given)
            except ValueError:
                continue
            over = found.error / ideal
            rows.append(
                {"method": method, "clients": clients, "epsilon": epsilon, "bits": found.bits, "over": over}
            )
            break
    return rows


def table_of_peers(rows) -> str:
    shown = [
        [row["method"], row["clients"], f"{row['epsilon']:g}", row["bits"], f"{row['over']:.3f}"]
        for row in rows
    ]
    return markdown(["noise", "clients", "epsilon", "bits", "MSE over ideal"], shown)


def define_flags():
    output.define_workdir()
    flags.DEFINE_list("clients", ["10", "100", "1000"], "Numbers of clients, all of whom take part.")
    flags.DEFINE_list("epsilons", ["1", "3", "8"], "Epsilons of a round, at delta 1e-5.")
    flags.DEFINE_integer("coordinates", 10_000, "Of an update.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Rounds of each setting.", lower_bound=1)


def main():
    f = flags.FLAGS
    points = [(c, e) for c in cli.numbers("clients", int) for e in cli.numbers("epsilons")]
    rows = [row for point in points for row in measure(*point, f.coordinates, f.repeats)]
    text = (
        f"Means of updates of norm 1 with {f.coordinates:,} coordinates, {f.repeats} rounds each, in turn; "
        "ideal is the error of a trusted server's Gaussian noise at the method's gamma. MiB: what a round "
        f"takes beside its arguments.\n\n{table(rows)}\n\n"
    )
    most = points[-1][1]
    wrapped = [
        wraps(clients, most, f.coordinates, f.repeats, stated)
        for clients in cli.numbers("clients", int)
        for stated in WRAPS
    ]
    text += (
        f"Updates that all agree: chance with which a coordinate wraps around, over {f.repeats} rounds."
        f"\n\n{table_of_wraps(wrapped)}\n\n"
    )
    missing = dropouts(points[0][1], f.coordinates, 20 * f.repeats)
    text += (
        f"{DROPOUTS['clients']} clients, a sum of at least {DROPOUTS['survivors']} messages is opened, each "
        f"is lost with probability {DROPOUTS['lost']:g}; errors beside those of noise and rounding of the "
        f"messages that came.\n\n{table_of_dropouts(missing)}\n\n"
    )
    exacts = [exact(clients, 20 * f.coordinates) for clients in cli.numbers("clients", int) if clients > 1]
    text += (
        "The aggregate Gaussian at cells 1.5: with probability *plain* a coordinate has "
        "one scale and no shift; to outsiders what is rounded looks like Gaussian noise, for exactly so many "
        "clients. The total variation is of one coordinate: times those of all rounds, it is too much for a "
        "guarantee.\n\n"
    )
    others = [
        row
        for clients in cli.numbers("clients", int)
        for epsilon in cli.numbers("epsilons")
        for row in peers(clients, epsilon, f.coordinates)
    ]
    text += (
        f"{table_of_exact(exacts)}\n\nInteger noise of two papers by their own accounting (Rényi), computed, "
        "not run: bits for the error of the secure sum, or else for the next of 1.1, 1.25 and 1.5 times "
        "ideal that they reach.\n\n"
    )
    output.save(text + table_of_peers(others), [*rows, *wrapped, *missing, *exacts, *others], plot(rows))


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
