"""Secure sums at equal epsilon: bits, error, wrapping around and cost, beside other kinds of trust.

  python -m experiments.figures.secure_sums --workdir=/tmp/secure_sums

One round of real messages whose mean is wanted, at equal epsilon of one round: against the server for the
secure sum and for noise of each client's own, against those who see the model for CEPAM, which trusts the
server with every update.

A second table is about the aggregate Gaussian: what its exact error saves and costs beside plain rounding.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from matplotlib.figure import Figure

from cepam_jax import mechanisms, privacy
from cepam_jax.federated import ClientArrays, LocalUpdate, Plan, Trained, initial_state, make_round, summed
from cepam_jax.federated.aggregation import AGGREGATORS
from cepam_jax.mechanisms import aggregate_gaussian, common_rotation, irwin_hall
from cepam_jax.run import guarantees
from cepam_jax.run.config import validate
from cepam_jax.tasks import Model
from cepam_jax.theory import distributed_noise
from configs import digits
from experiments import cli, output
from experiments.plots import style
from experiments.tables import markdown

SMOKE = {"clients": ["10"], "epsilons": ["3"], "coordinates": 500, "repeats": 2}
# Name -> (whom epsilon is against, fields of the mechanism).
METHODS = {
    "secure sum": ("server", {"name": "secure_sum"}),
    "secure sum, cells 3": ("server", {"name": "secure_sum", "secure.cells": 3.0}),
    "CEPAM Z1 (trusted server)": ("released_model", {"name": "lrsuq"}),
    "noise of one's own + SDQ": ("server", {"name": "noise_sdq"}),
}
_TOGETHER = 25  # clients under one vmap


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


def setting_of(method: str, clients: int, epsilon: float, coordinates: int) -> Setting:
    adversary, fields = METHODS[method]
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


def _chosen(model, arrays, client, key, state, number):
    """The client's update, which is given."""
    return Trained(arrays.examples["update"][client], jnp.float32(0), jnp.float32(1))


def program(setting: Setting, updates: np.ndarray):
    """(compiled round, State, ClientArrays) whose clients send these updates."""
    clients, coordinates = updates.shape
    plan = Plan(
        local_update=LocalUpdate(_chosen),
        mechanism=setting.mechanism,
        aggregator=AGGREGATORS["mean"],
        server=optax.sgd(1.0),
        segments=(coordinates,),
        per_round=clients,
        per_chunk=min(clients, _TOGETHER),
    )
    arrays = ClientArrays(
        examples={"update": jnp.asarray(updates)},
        constants={},
        rows=jnp.arange(clients, dtype=jnp.int32)[:, None],
        counts=jnp.ones(clients, jnp.int32),
        steps=jnp.ones(clients, jnp.int32),
        knobs=setting.knobs,
        training_key=jax.random.key(1),
        shared_key=jax.random.key(2),
    )
    model = Model({"w": jnp.zeros(coordinates)})
    state = initial_state(plan, model, setting.knobs, clients, False, setting.knobs.clip[0])
    return jax.jit(make_round(plan)).lower(state, arrays).compile(), state, arrays


def measure(method: str, clients: int, epsilon: float, coordinates: int, repeats: int) -> dict:
    """What rounds of a method cost and how far their means are from that of the updates."""
    setting, updates = setting_of(method, clients, epsilon, coordinates), updates_of(clients, coordinates)
    run, state, arrays = program(setting, updates)
    mean, squares, bits, wrapped, seconds = updates.astype(np.float64).mean(0), [], [], [], []
    for number in range(repeats):
        begin = state._replace(round=jnp.int32(number))
        start = time.perf_counter()
        after, report = jax.block_until_ready(run(begin, arrays))
        seconds.append(time.perf_counter() - start)
        error = np.asarray(after.params["w"], np.float64) - mean
        squares.append(np.mean(error**2))
        bits.append(float(np.mean(report.participants.bits)) / coordinates)
        wrapped.append(_wrapped(setting, arrays, begin, error, clients))
    memory = run.memory_analysis()
    return {
        "method": method,
        "against": METHODS[method][0],
        "clients": clients,
        "epsilon": epsilon,
        "gamma": setting.gamma,
        "epsilons": setting.epsilons,
        "bits": float(np.mean(bits)),
        # Beside the least possible: that of a trusted server's Gaussian noise for the same epsilon.
        "error": float(np.mean(squares)),
        "ideal": 1 / (clients * setting.gamma**2),
        "wrapped": None if setting.mechanism.joint is None else float(np.mean(wrapped)),
        "seconds": float(np.median(seconds)),
        "mebibytes": None if memory is None else memory.temp_size_in_bytes / 2**20,
    }


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
    panels[0].legend(fontsize=8)
    return figure


def table(rows) -> str:
    header = [
        *("method", "clients", "epsilon", "against", "gamma", "bits", "MSE", "MSE over ideal"),
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
        "credit": 1 / (12 * cells**2),
        "distance": aggregate_gaussian.total_variation(clients),
    }


def table_of_exact(rows) -> str:
    header = ["clients", "plain", "their scale", "bits more", "noise that counts more", "total variation"]
    return markdown(
        header,
        [
            [
                row["clients"],
                f"{row['share']:.4f}",
                f"{row['scale']:.3f}",
                f"{row['bits']:.3f}",
                f"{100 * row['credit']:.1f} %",
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
    rows = [
        measure(method, clients, epsilon, f.coordinates, f.repeats)
        for clients in cli.numbers("clients", int)
        for epsilon in cli.numbers("epsilons")
        for method in METHODS
    ]
    text = (
        f"Means of updates of norm 1 with {f.coordinates:,} coordinates, {f.repeats} rounds each; ideal is"
        " the error of a trusted server's Gaussian noise at the method's gamma.\n\n"
    )
    exacts = [exact(clients, 20 * f.coordinates) for clients in cli.numbers("clients", int) if clients > 1]
    text += (
        f"{table(rows)}\n\nThe aggregate Gaussian at cells 1.5: with probability *plain* a coordinate has "
        "one scale and no shift; what is rounded counts as Gaussian noise against outsiders, for exactly so "
        "many clients.\n\n"
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
    output.save(text + table_of_peers(others), [*rows, *exacts, *others], plot(rows))


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
