"""What is claimed of trust: rows of `experiments.figures.trust` held against each other, seed by seed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import MARGIN, TOGETHER, above, all_of, differences, in_points, losses, verdict

SERVER, SUM, NOBODY = "server, other clients", "a secure sum, all clients", "nobody"
SERVER_SDQ, OWN_SDQ, SECURE = "server noise + SDQ", "own noise + SDQ", "secure sum"


def _pairs(rows: list[dict], first: tuple[str, str], second: tuple[str, str]):
    """[(target, row of the first, row of the second)]; none where one of both did not run."""
    by = {(row["trusted"], row["method"], row["target"]): row for row in rows}
    targets = sorted({row["target"] for row in rows} - {0.0})
    found = [(f"epsilon {t:g}", by.get((*first, t)), by.get((*second, t))) for t in targets]
    return [] if any(None in pair for pair in found) else found


def _lost(pairs) -> tuple[dict[str, np.ndarray], str]:
    """Points that the second of each pair loses by target, and the bits of both, as text."""
    lost = {at: in_points(one["accuracies"], two["accuracies"]) for at, one, two in pairs}
    bits = ", ".join(f"{two['bits']:.3f} against {one['bits']:.3f} at {at}" for at, one, two in pairs)
    return lost, f"bits {bits}"


def as_accurate(pairs, seeds: int) -> tuple[str, bool | None, str]:
    """What is measured, whether the second is as accurate as the first at every target, and why."""
    lost, bits = _lost(pairs)
    found = differences(lost, MARGIN)
    return f"points lost: {found.measured}; {bits}; {seeds} seeds", found.state, found.why


def no_less_accurate(pairs, seeds: int) -> tuple[str, bool | None, str]:
    """The same of: whether the second loses no more than the margin."""
    lost, bits = _lost(pairs)
    found = losses(lost, MARGIN)
    return f"points lost: {found.measured}; {bits}; {seeds} seeds", found.state, found.why


def less_accurate(pairs, seeds: int) -> tuple[str, bool | None, str]:
    """The same of: whether the second loses more than the margin at every target."""
    lost, bits = _lost(pairs)
    state = all_of([above(values, MARGIN, len(lost)) for values in lost.values()])
    means = ", ".join(f"{at}: {np.mean(values):.1f}" for at, values in lost.items())
    text = f"points lost by {OWN_SDQ}: {means}; {bits}; {seeds} seeds"
    return text, state, f"margin {MARGIN:g} points; {len(lost)} bounds of paired t tests, {TOGETHER}"


class Question(NamedTuple):
    """A claim on two rows (trusted, method), the second against the first."""

    first: tuple[str, str]
    second: tuple[str, str]
    claim: str
    answer: Callable
    beside: str
    trust: str


_TRUSTED, _SECURE = (SERVER, "CEPAM Z1"), (SUM, SECURE)
QUESTIONS = (
    Question(
        (SERVER, SERVER_SDQ),
        _TRUSTED,
        "{data}, a trusted server: at equal epsilon against the released model CEPAM Z1 is as accurate as "
        "SDQ with noise by the server",
        as_accurate,
        "; neither has an epsilon against the server",
        SERVER_TRUSTED,
    ),
    Question(
        _TRUSTED,
        _SECURE,
        "{data}: a secure sum hides a client from the server at the epsilon that CEPAM Z1 has against the "
        "released model, and is as accurate",
        no_less_accurate,
        "; the protocol of the secure sum is taken for granted",
        "a trusted server beside a secure sum and a server that is not; uplink",
    ),
    Question(
        _SECURE,
        (NOBODY, OWN_SDQ),
        "{data}: without a secure sum the same epsilon against the server costs more than {margin:g} points",
        less_accurate,
        "",
        "the server is not trusted: with a secure sum, and with nobody's help; uplink",
    ),
)


def claims_of(data: str, rows: list[dict], seeds: int) -> list[Claim]:
    """What trust costs, at all targets together; only of methods that ran."""
    level, claims = "client level, all rounds; epsilons of the runs' own reports", []
    for question in QUESTIONS:
        pairs = _pairs(rows, question.first, question.second)
        if not pairs:
            continue
        diverged = [
            f"{row['method']} at {at}" for at, *both in pairs for row in both if not row["accuracies"]
        ]
        measured, state, why = (
            f"diverged: {', '.join(diverged)}",
            None,
            "needs runs that end, of every target",
        )
        if not diverged:
            measured, state, why = question.answer(pairs, seeds)
        claims.append(
            Claim(
                "this project",
                question.claim.format(data=data, margin=MARGIN),
                measured,
                verdict(state, seeds),
                f"{why}; {level}{question.beside}",
                question.trust,
            )
        )
    return claims
