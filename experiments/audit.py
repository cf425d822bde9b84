"""An audit that a sceptic can run on settings of their own.

  python -m experiments.audit --mechanism=lrsuq_gaussian_z1 --sigma=0.5
  python -m experiments.audit --mechanism=secure_sum --clients=4,16 --sigma=0.5
  python -m experiments.audit --mechanism=sdq --clients=4,16 --sigma=0.5

First the error's law, at a stated false-alarm rate over all tests together. Then a membership game: an
update is a canary of norm 1 or zero; what an adversary scores gives a lower bound on epsilon, at 95 %
confidence for each adversary, beside the accountant's. Ends with exit code 1 if the law is rejected or a
bound exceeds the accountant's epsilon. An audit finds faults and does not show that there are none: a law
that is not rejected may be wrong by less than these samples see, and another attack may score more.

With --clients the game is about the sum of so many messages in the real round (experiments/sum_audit.py):
the view of a server that is given a secure sum, alone or with --colluders; or, with a mechanism that has no
noise of its own, that of those who are given the model after the server has added the noise.
"""

import sys

import jax
import numpy as np
from absl import flags

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError, require, require_choice
from cepam_jax.mechanisms import Knobs
from cepam_jax.mechanisms.registry import CONFIGURABLE
from cepam_jax.privacy import ADVERSARIES, Federation, Phase, audit, guaranteed
from experiments import cli, sum_audit
from experiments.tables import markdown

_DIMENSION = 16


def accountant_epsilon(mechanism, knobs, adversary: str, delta: float) -> float:
    """One release of an update of norm at most 1: L2, or L1 under Laplace noise."""
    about = mechanism.about

    def deviation(noise):
        return np.full(1, float(noise.deviation(knobs)) if noise else 0.0)

    laws = [noise.law if noise else None for noise in (about.outsiders, about.server)]
    norm = "l1" if "laplace" in laws else "l2"
    phase = Phase(1, deviation(about.outsiders), deviation(about.server))
    federation = Federation(*laws, norm, np.ones(1), (phase,), np.ones(1), aggregation="function", fresh=True)
    return guaranteed(ADVERSARIES[adversary](federation)[0], delta)


def canary(mechanism):
    """An update of norm 1 that is as easy to tell from zero as any: on one coordinate for an L1 clip."""
    outsiders = mechanism.about.outsiders
    if outsiders and outsiders.law == "laplace":
        return np.eye(1, _DIMENSION, dtype=np.float32)[0]
    direction = np.random.default_rng(0).normal(size=_DIMENSION)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def define_flags():
    flags.DEFINE_string(
        "mechanism", "lrsuq_gaussian_z1", "Name of the registry; of a sum, config.mechanism.name."
    )
    flags.DEFINE_list("clients", [], "Audit sums of so many messages; none: what one client sends.")
    flags.DEFINE_integer("colluders", 0, "Of a secure sum: clients that tell the server their noise.")
    flags.DEFINE_float("sigma", 0.5, "Standard deviation of the error; updates have norm 1.")
    flags.DEFINE_integer("size", 1_000_000, "Coordinates of the exactness tests.")
    flags.DEFINE_integer("trials", 100_000, "Games with the canary, and as many without.")
    flags.DEFINE_float("false_alarm", 1e-3, "Probability of rejecting a mechanism that is as stated.")
    flags.DEFINE_float("delta", 0.01, "Of the lower bound and of the accountant's epsilon.")
    flags.DEFINE_integer("seed", 0, "Of everything random.")


def sums() -> bool:
    """Audits the sums that --clients names and prints a table; whether no bound exceeds its epsilon."""
    f, rows = flags.FLAGS, []
    require_choice("--mechanism", f.mechanism, sorted(CONFIGURABLE))
    for clients in cli.numbers("clients", int):
        require(clients > 0, "--clients", f.clients, "positive numbers")
        try:
            config = sum_audit.config_of(f.mechanism, clients, f.sigma, f.colluders, f.delta)
        except ConfigError as error:
            raise ConfigError(
                f"--mechanism={f.mechanism} --clients={clients} --colluders={f.colluders}: {error}. With "
                "--clients, --mechanism is secure_sum, or one without noise of its own, as sdq, to which "
                "the server adds it"
            ) from error
        rows.append(sum_audit.audited(config, f.trials, f.seed))
    header = [
        "mechanism",
        "clients",
        "colluders",
        "adversary",
        "epsilon is at least",
        "accountant says at most",
    ]
    cells = [
        [
            *list(row.values())[:3],
            row["adversary"].replace("_", " "),
            f"{row['proved']:.3f}",
            f"{row['claimed']:.3f}",
        ]
        for row in rows
    ]
    print(markdown(header, cells))
    sound = all(row["proved"] <= row["claimed"] for row in rows)
    print(
        f"\nsigma = {f.sigma:g}, {f.trials:,} games of each kind, 95 % confidence for each row; "
        f"delta = {f.delta:g}, one round, client level, add/remove" + ("" if sound else ": CONTRADICTION")
    )
    return sound


def main():
    f = flags.FLAGS
    for name in ("sigma", "size", "trials", "false_alarm", "delta"):
        require(f[name].value > 0, f"--{name}", f[name].value, "positive")
    require(bool(f.clients) or not f.colluders, "--colluders", f.colluders, "0 without --clients")
    if f.clients:
        if not sums():
            sys.exit(1)
        return
    mechanism = mechanisms.make(f.mechanism)
    knobs = Knobs(sigma=f.sigma, step=f.sigma, bits=4.0, levels=16.0, fraction=0.5, clip=1.0)
    findings = audit.exactness(mechanism, knobs, f.size, f.seed)
    least = f.false_alarm / len(findings)
    print(markdown(["test", "p-value"], [[finding.test, f"{finding.p_value:.3g}"] for finding in findings]))
    exact = all(finding.p_value > least for finding in findings)
    verdict = "not rejected" if exact else "REJECTED"
    print(f"\nerror law {mechanism.about.law}: {verdict} at a false-alarm rate of {f.false_alarm:g}\n")
    sound = True
    scalar = mechanism.code.kind == "lattice" and mechanism.code.layer != "cell"
    scalar = scalar and mechanism.code.lattice == "Z1"
    for adversary in audit.ADVERSARIES if scalar else audit.ADVERSARIES[:1]:
        scores = audit.membership_scores(mechanism, knobs, canary(mechanism), f.trials, adversary, f.seed)
        proved = audit.epsilon_lower_bound(*scores, f.delta)
        claimed = accountant_epsilon(mechanism, knobs, adversary, f.delta)
        sound &= proved <= claimed
        print(
            f"{adversary}: epsilon is at least {proved:.3f} (95 % confidence); the accountant says at most "
            f"{claimed:.3f} (delta = {f.delta:g}, one release, client level, add/remove)"
            + ("" if proved <= claimed else ": CONTRADICTION")
        )
    jax.clear_caches()
    if not (exact and sound):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, define_flags)
