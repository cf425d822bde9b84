"""What the noise, the draws and the aggregation do to epsilon, and a rule that changes the noise as it goes.

  python -m examples.privacy_report

An epsilon always belongs to an adversary. Those of LRSUQ are finite for all who do not know the shared
randomness; `split` keeps a part of its noise from the server, too.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import cepam_jax as cepam
from cepam_jax import federated, mechanisms

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2000, 4)).astype(np.float32)
DATA = {"inputs": X, "labels": (X.sum(1) > 0).astype(np.int32)}
TASK = cepam.tasks.classification(nn.Dense(2), example=X[0])


def federation(gamma: float = 2.0, mechanism=None, clients: int = 100, **parts) -> cepam.Federation:
    """A federation whose clip bound is `gamma` times the noise's deviation."""
    chain = mechanisms.chain(mechanisms.clip("l2"), mechanism or mechanisms.lrsuq("gaussian"))
    held = cepam.clients(DATA, number=clients)
    return cepam.Federation(TASK, held, chain, sigma=1.0 / gamma, clip=1.0, **parts)


def compared(rounds: int) -> dict[str, dict[str, float]]:
    """Name of a change -> adversary -> largest epsilon over clients, before anything is trained."""
    cases = {
        "gamma 2, all 100 clients, mean": federation(),
        "gamma 1": federation(gamma=1.0),
        "gamma 4": federation(gamma=4.0),
        "10 of 100 clients a round": federation(participants=10),
        "median": federation(aggregator="median"),
        "weights by inverse error": federation(aggregator="inverse_error"),
        "split: half of the noise is private": federation(mechanism=mechanisms.split(share=0.5)),
    }
    return {
        name: {who: float(np.max(e)) for who, e in case.epsilons(planned_rounds=rounds).items()}
        for name, case in cases.items()
    }


def rising(factor: float) -> federated.Control:
    """gamma grows by a factor each round: a rule with a state of its own, which reads no results.

    One that read results would have `observe`, and the noise of a round would be chosen by what was released
    before: nothing is guaranteed then, unless it keeps a budget that is fixed beforehand (docs/adaptive.md).
    """
    return federated.Control(
        knobs=lambda grown, knobs, number: knobs._replace(sigma=knobs.sigma / grown),
        initialize=lambda knobs: jnp.float32(1),
        advance=lambda grown: grown * factor,
    )


def main(rounds: int = 5) -> dict[str, float]:
    """Prints the table and the two reports; returns the epsilons of the constant and of the rising rule."""
    table = compared(rounds)
    width = max(map(len, table))
    print(" " * width, *(f"{who:>17}" for who in next(iter(table.values()))))
    for name, row in table.items():
        print(f"{name:{width}}", *(f"{value:17.3f}" for value in row.values()))

    found = {}
    for name, rule in (("constant", None), ("rising", rising(1.7))):
        running = federation(control=rule)
        state = running.initialize()
        for _ in range(rounds):
            state, _ = running.step(state)
        found[name] = float(running.epsilons()["released_model"].max())
        gammas = [float(1 / entry.knobs.sigma) for entry in running.ledger.entries]
        print(f"\n{name}: gamma {', '.join(f'{gamma:.3g}' for gamma in gammas)} were applied")
        print(running.privacy())
    return found


if __name__ == "__main__":
    main()
