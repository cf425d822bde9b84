"""Why no theorem covers a run, whoever looks: what its parts and its ledger say against a guarantee."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cepam_jax.run import budgets
from cepam_jax.run.ledger import Ledger

if TYPE_CHECKING:
    from cepam_jax.run.guarantees import Facts


def of_seeds(seeds, public: bool) -> tuple[str, ...]:
    """Why nothing is guaranteed where a public seed is one of those of the noise.

    Args:
      seeds: with model, training and shared, whole numbers.
      public: whether clients make the first model from the model's seed, so that everybody knows it.
    """
    if not public or seeds.model not in (seeds.training, seeds.shared):
        return ()
    return (
        "clients make the first model from a public seed, and all noise is made from the same number: give "
        "the model a seed of its own",
    )


def of_step_weights(poisson: bool, by_server: bool, varying: bool) -> tuple[str, ...]:
    """Why nothing is guaranteed where what the result is multiplied by tells who came.

    Args:
      poisson: whether each client is drawn by itself.
      by_server: whether the server adds noise, so that a client that never comes is what is compared with.
      varying: whether the mean step weight of a round may depend on who came.
    """
    if not (poisson and by_server and varying):
        return ()
    return (
        "the result is multiplied by the mean step weight of those who came, beside the noise, and who comes "
        "is a secret under Poisson sampling with noise by the server",
    )


def of_config(config) -> tuple[str, ...]:
    """Both of a configuration."""
    return of_seeds(config.seeds, config.downlink.start == "seed") + of_step_weights(
        config.participation.sampling == "poisson", config.server.noise, config.local.normalize
    )


def of_run(facts: Facts, ledger: Ledger) -> Iterator[str]:
    """Why no theorem covers this run, whoever looks; nothing where one does."""
    yield from facts.refused
    if facts.influence is None:
        yield "local training states nothing about privacy"
    if facts.about.leaks and not facts.by_server:  # it hides updates from those who see the sum alone
        yield "sent without noise: " + ", ".join(facts.about.leaks)
    if facts.aggregator.refused:
        yield facts.aggregator.refused
    if facts.control.watch:
        yield (
            "the rule that sets the knobs reads what is not released, such as training losses: no noise "
            "covers what the knobs tell of it"
        )
    if exceeded := budgets.refused(facts, ledger):
        yield exceeded
    if facts.influence is None:
        return
    unbounded = facts.about.unbounded_by and facts.influence.bound is None and not facts.about.leaks
    if unbounded and not facts.by_server:
        yield (
            f"the transform {facts.about.unbounded_by} states no norm that it keeps: no bound of a clip "
            "before it holds behind it"
        )
    bounded = facts.influence.bound is not None
    if bounded and facts.central:
        yield "the server's noise is for updates that are clipped, and local training clips examples"
    if facts.remembers and (bounded or facts.influence.unit == "example"):
        yield (
            "error feedback adds what earlier rounds lost, which no clip bounds: one "
            f"{facts.influence.unit} may move it without bound"
        )
    norm = facts.influence.norm
    # A clip inside a mechanism is seen by `about.clip` alone; the L2 clip drives nothing apart in L2.
    apart = norm not in facts.about.keeps or (
        facts.about.clip is not None and (facts.about.clip, norm) != ("l2", "l2")
    )
    if bounded and norm is not None and apart:
        who = f"a step of {facts.about.name} before the noise"
        yield f"local training bounds updates in the {norm} norm, and {who} may move two farther apart"
