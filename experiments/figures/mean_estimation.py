"""Distributed mean estimation with stochastic quantizers: the 500-user demonstration, and a table.

  python -m experiments.figures.mean_estimation --workdir=/tmp/mean_estimation

Left: 500 users draw from N(.4, .3^2); the running mean of their 1-bit reports against the running
mean of the true values. Right and table: measured mean squared error of the mean of K clients' vectors
against what 1611.00429 (lemma 3, theorems 2 and 3) predicts or bounds, for binary, k-level and
rotated quantizers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from scipy import stats

from cepam_jax import mechanisms
from cepam_jax.mechanisms import Keys, Knobs
from experiments import cli, output
from experiments.output import NO_PRIVACY, Claim
from experiments.paired import FALSE_ALARMS, TOGETHER, all_of, verdict
from experiments.tables import markdown

_USERS = 500
_ABOUT_200 = 250  # users that still count as about 200

SETTINGS = [(clients, d) for clients in (10, 100) for d in (64, 1024)]
K_LEVEL = mechanisms.k_level()
ROTATED = mechanisms.chain(mechanisms.rotate(), mechanisms.k_level())
QUANTIZERS = [
    ("binary", 2, mechanisms.binary()),
    ("k-level", 4, K_LEVEL),
    ("k-level", 16, K_LEVEL),
    ("rotated", 2, ROTATED),
    ("rotated", 4, ROTATED),
    ("rotated", 16, ROTATED),
]


def keys_of(seed, client, rotation=0):
    """Private coins per client; the rotation is shared by all clients of a repetition."""
    private = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), seed), client)
    return Keys(jax.random.fold_in(jax.random.key(2), rotation), private)


def demonstration(seed=0):
    """(true values, 1-bit reports), each f32[500], of 500 users; the range [min, max] is common knowledge."""
    values = 0.4 + 0.3 * jax.random.normal(jax.random.key(seed), (_USERS,))
    mechanism = mechanisms.binary()
    keys = keys_of(seed, 0)
    message = mechanism.encode(keys, values, Knobs())
    return values, mechanism.decode(keys.shared, message, Knobs())


def settled(values, reports, tolerance):
    """int[draws]: the user from whom on the running means of both differ by at most `tolerance`.

    Args:
      values, reports: [draws, users].
      tolerance: of the difference.
    """
    outside = np.abs(np.cumsum(reports - values, 1) / np.arange(1, values.shape[1] + 1)) > tolerance
    after_last = values.shape[1] - np.argmax(outside[:, ::-1], 1)
    return np.where(outside.any(1), after_last, 0)


def vectors(clients, d):
    """f32[clients, d] of unit norm, unequal coordinates: a few carry most of the energy."""
    x = jax.random.normal(jax.random.key(7), (clients, d)) * jnp.geomspace(1, 0.01, d)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


@functools.lru_cache
def errors_of(mechanism, clients, d):
    """(seeds, knobs) -> squared errors of the mean, f32[seeds]; and knobs -> their mean by the formula."""
    x = vectors(clients, d)

    def once(knobs, seed):
        def one(client, row):
            keys = keys_of(seed, client, rotation=seed)
            return mechanism.decode(keys.shared, mechanism.encode(keys, row, knobs), knobs)

        decoded = jax.vmap(one)(jnp.arange(clients), x)
        return jnp.sum(jnp.square(decoded.mean(0) - x.mean(0)))

    def exact(knobs):
        return jnp.sum(jax.vmap(lambda row: mechanism.variance(row, knobs))(x)) / clients**2

    errors = jax.jit(lambda seeds, knobs: jax.lax.map(functools.partial(once, knobs), seeds))
    return errors, jax.jit(exact) if mechanism.variance else None


def measure(mechanism, levels, clients, d, repeats):
    """Mean over repetitions of |mean decoded - mean true|^2, its standard error, and the exact formula."""
    run, formula = errors_of(mechanism, clients, d)
    knobs = Knobs(levels=jnp.float32(levels))
    errors = np.asarray(run(jnp.arange(repeats), knobs), np.float64)
    exact = float(formula(knobs)) if formula else None
    return errors.mean(), errors.std(ddof=1) / np.sqrt(repeats), exact


def bound(kind, levels, clients, d):
    """The upper bound of 1611.00429 for vectors of unit norm."""
    if kind == "rotated":
        return (2 * np.log(d) + 2) / (clients * (levels - 1) ** 2)
    return d / (2 * clients * (levels - 1) ** 2)


def rows(repeats):
    found = []
    for kind, levels, mechanism in QUANTIZERS:
        for clients, d in SETTINGS:
            error, deviation, exact = measure(mechanism, levels, clients, d, repeats)
            found.append(
                {
                    "quantizer": kind,
                    "levels": levels,
                    "K": clients,
                    "d": d,
                    "measured": error,
                    "standard_error": deviation,
                    "exact": exact,
                    "bound": bound(kind, levels, clients, d),
                }
            )
    return found


def plot(values, reports, table):
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    users = np.arange(1, _USERS + 1)
    for series, style, label in ((values, "k-", "true values"), (reports, "k--", "1-bit reports")):
        left.plot(users, np.cumsum(series) / users, style, label=label)
    left.axhline(0.4, color="0.6", linewidth=1, zorder=0)
    left.set(xlabel="users", ylabel="running mean", title="N(0.4, 0.3²), 500 users")
    left.legend()
    markers = {"binary": ("o", "k"), "k-level": ("s", "tab:blue"), "rotated": ("^", "tab:orange")}
    for kind, (marker, color) in markers.items():
        mine = [row for row in table if row["quantizer"] == kind]
        right.loglog(
            [row["bound"] for row in mine],
            [row["measured"] for row in mine],
            marker,
            color=color,
            fillstyle="none",
            label=kind,
        )
    ends = np.array([min(r["measured"] for r in table), max(r["bound"] for r in table)])
    right.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
    right.set(
        xlabel="bound on the mean squared error",
        ylabel="measured",
        title="below the line: better than the bound",
    )
    right.legend()
    return figure


def within_bounds(found, repeats: int) -> tuple[bool | None, float]:
    """Whether every mean squared error is below its bound, and the largest upper confidence bound over it."""
    needed = stats.t.ppf(1 - FALSE_ALARMS / len(found), repeats - 1)
    ends = [[(r["measured"] + s * needed * r["standard_error"]) / r["bound"] for r in found] for s in (-1, 1)]
    states = [True if high < 1 else False if low > 1 else None for low, high in zip(*ends, strict=True)]
    return all_of(states), max(ends[1])


def half_settled(users, by: int, tests: int) -> bool | None:
    """Whether at least half of all draws have settled by a user, with Clopper and Pearson's bounds.

    Args:
      users: i64[draws], from whom on each draw is settled.
      by: the user.
      tests: bounds that are to hold together.
    """
    count, draws = int((users <= by).sum()), len(users)
    alpha = FALSE_ALARMS / tests
    low = stats.beta.ppf(alpha, count, draws - count + 1) if count else 0.0
    high = stats.beta.ppf(1 - alpha, count + 1, draws - count) if count < draws else 1.0
    return True if low > 0.5 else False if high < 0.5 else None


def claims(values, reports, found, repeats: int) -> list[Claim]:
    """What 1611.00429 bounds, and what the demonstration says."""
    state, highest = within_bounds(found, repeats)
    users = {tolerance: settled(values, reports, tolerance) for tolerance in (0.1, 0.05)}
    wide, narrow = (np.percentile(of_draws, (50, 90)) for of_draws in users.values())
    loose, tight = (half_settled(of_draws, _ABOUT_200, len(users)) for of_draws in users.values())
    return [
        Claim(
            "1611.00429",
            "mean squared error of binary, k-level and rotated quantizers stays below its bounds",
            f"largest upper confidence limit of an error over its bound: {highest:.2f}; {repeats} draws",
            verdict(state, repeats),
            f"{len(found)} settings, one family of vectors; confidence bounds {TOGETHER}",
            NO_PRIVACY,
        ),
        Claim(
            "1610.05492",
            "the running mean of 500 users' 1-bit reports settles after about 200 users",
            f"within .1 from user {wide[0]:.0f} on in half of the draws, from {wide[1]:.0f} in nine of ten; "
            f"within .05 from {narrow[0]:.0f} in half; {len(values)} draws",
            verdict(tight, len(values), loose),
            f"holds if half of the draws stay within .05 from user {_ABOUT_200} on, in part if within .1; "
            f"confidence bounds {TOGETHER}; one bit of a user has a deviation near .8, so the mean of 200 "
            "is still some .06 off",
            NO_PRIVACY,
        ),
    ]


def define_flags():
    output.define_workdir()
    flags.DEFINE_integer("repeats", 200, "Independent repetitions per row of the table.")
    flags.DEFINE_integer("draws", 1000, "Draws of the 500 users for the claim about them.")


def main():
    draws = [np.asarray(a) for a in jax.vmap(demonstration)(jnp.arange(flags.FLAGS.draws))]
    found = rows(flags.FLAGS.repeats)
    header = ["quantizer", "levels", "K", "d", "measured", "± standard error", "exact formula", "upper bound"]
    cells = [
        [
            *(r[name] for name in ("quantizer", "levels", "K", "d")),
            f"{r['measured']:.3e}",
            f"{r['standard_error']:.0e}",
            "" if r["exact"] is None else f"{r['exact']:.3e}",
            f"{r['bound']:.3e}",
        ]
        for r in found
    ]
    text = "Mean squared error of the mean of K vectors of unit norm in d dimensions\n\n" + markdown(
        header, cells
    )
    output.save(
        text, found, plot(draws[0][0], draws[1][0], found), claims(*draws, found, flags.FLAGS.repeats)
    )


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"repeats": 2, "draws": 20})
