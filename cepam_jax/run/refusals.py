"""Why no theorem covers a run, whoever looks: what its parts and its ledger say against a guarantee."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cepam_jax.run import budgets
from cepam_jax.run.ledger import Ledger

if TYPE_CHECKING:
    from cepam_jax.run.guarantees import Facts


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
