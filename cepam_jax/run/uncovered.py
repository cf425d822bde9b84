"""What no epsilon accounts for, whatever the parts, in words: of configured runs and in Python."""

from typing import Any

_WIRE = (
    "the messages on the wire: even without the shared key their integers, scales and lengths tell more than "
    "a decoded update does; encrypt the link"
)
_SHARED = (
    "each reveals as much again, and those with equal seeds share their noise, which their difference lacks"
)
_SEEDS = "whoever knows or guesses them has all noise"
_FOR_THEM = "they are for whoever may see the data"
_FOR_WHOM = f"losses, norms, signals and message lengths of private updates, without noise; {_FOR_THEM}"

_ENDING = (
    "an end by hand: where what was released decides that a run ends early, the number of rounds is a result "
    "itself, and the epsilon of all rounds that were planned holds"
)

SERVER_NOISE = (
    "the server's honesty: it sees every decoded update, and the noise that it adds and keeps to itself is "
    "all that hides them from the others"
)

# Of secure sums: the simulation takes the protocol for granted.
OF_SUMS = (
    "the protocol that adds up messages without showing them: it is taken for granted that it opens one sum "
    "of a round, of at least so many messages, and that who drops out depends on no data",
)

IN_A_RUN = (
    _WIRE,
    f"metrics.jsonl and what is printed while training: {_FOR_WHOM}",
    "the other files of a work directory: partition.txt and partition.png count each client's labels, and "
    f"checkpoints hold what clients keep between rounds, without noise; {_FOR_THEM}",
    "the mean and deviation of all training pixels or features, by which inputs, if any, are normalized, "
    "computed without noise",
    f"other runs on the same data: {_SHARED}",
    _ENDING,
    f"the seeds: 32-bit numbers, in config.json; {_SEEDS}; ledger.jsonl says who was drawn",
)

IN_A_DEPLOYMENT = (
    _WIRE + ", which hides no lengths",
    "when messages are sent, how long each takes, and who answers: whoever watches the links or reads the "
    "server's state and logs knows who was drawn, so nothing is counted on hidden draws",
    "a server that draws, asks or counts otherwise than agreed: honest draws are taken for granted. A client "
    "answers each round once, whatever it is asked",
    "a directory that is put back to an earlier state, by a backup or a copy: where the other side has seen "
    "no more, rounds may then be answered twice, with one shared key, and what was spent be forgotten. A "
    "server's that is put back by one round is noticed only by the clients that it had asked in that round "
    "or a later one: to the others two models of one round may go out, where one is counted",
    "the mean and deviation of all training pixels or features, by which inputs, if any, are normalized, "
    "computed without noise",
    f"other runs on the same data: {_SHARED}",
    _ENDING,
)

OPEN_ROUND = (
    "the open round: its answers may be out, so it is counted as if they were; its model is not released yet",
)

IN_PYTHON = (
    _WIRE,
    f"reports of step(), evaluate_clients() and metrics of training examples: {_FOR_WHOM}",
    f"other federations and runs on the same data: {_SHARED}",
    f"the seeds: 32-bit numbers; {_SEEDS}; the ledger says who was drawn",
    "whoever is behind a client or an example: where several are of one person, an epsilon protects one of "
    "them alone",
    "the model that training begins with, its frozen parameters too, if they were computed from the clients' "
    "data",
    _ENDING + " (`planned_rounds`)",
    "Python code that is handed over: parts are taken at their word, and a function that reads the clients' "
    "data by other ways than its arguments is not seen",
)


def of_clients(config) -> tuple[str, ...]:
    """What is taken as given of who holds which examples, as a configuration says."""
    found, kind = [], config.partition.kind
    if kind != "iid":
        found.append(
            "which client holds which example: it follows from all labels or sizes, and is taken as given"
        )
    text = config.get("text", {})
    # At example level no windows overlap: a rule of texts refuses it.
    if kind != "natural" and config.task == "next_character" and text["stride"] <= text["context"]:
        found.append(
            "a character: windows of the text overlap, and those that have it may lie with several clients; "
            + _PROTECTS["client"]
        )
    return tuple(found)


_PROTECTS = {
    "client": "an epsilon protects what one client holds",
    "example": "an epsilon protects one example",
}


def with_owners(federation: Any, holders: int) -> Any:
    """A federation whose report says that one owner's examples lie with several clients, where they do.

    Args:
      federation: of the accountant.
      holders: the most clients that hold examples of one owner.
    """
    if holders <= 1:
        return federation
    said = (
        f"an owner: the examples of one, a speaker or a hospital, lie with up to {holders} clients, and "
        f"{_PROTECTS[federation.unit]}"
    )
    if federation.unit == "client":
        said += "; config.partition.kind='natural' makes owners clients"
    return federation._replace(not_covered=(said, *federation.not_covered))


def with_broadcast(text: str, compressed: bool) -> str:
    """A report with what it says of a compressed broadcast, if there is one."""
    if not compressed:
        return text
    return (
        f"{text}\nthe broadcast goes through a quantizer: it is a function of the released models and of "
        "randomness of its own, so nothing private is in it and no epsilon is spent on it (post-processing)"
    )


def of_failures(rounds: int) -> tuple[str, ...]:
    """What rounds that failed betray beyond their updates, which a ledger counts; () where none failed."""
    if not rounds:
        return ()
    return (
        f"{rounds} rounds that failed and were not applied: their updates are counted, but not what the "
        "failure tells without noise: that an update, what was decoded or the model was not finite, whose",
    )


def of_votes(counted: float | None) -> tuple[str, ...]:
    """What clients send beside their updates where updates within their clips are counted; () elsewhere."""
    if counted is None:
        return ()
    return (
        "each client's vote, whether its update was within the clip: it reaches the server without noise, "
        "and the server's noise hides it from others alone, if the server adds it as it says",
    )


def of_ahead(ahead: dict[int, int]) -> tuple[str, ...]:
    """What clients have proved of rounds that the server has forgotten: client -> through which round."""
    return tuple(
        f"rounds that this server does not know of: client {client} has answered through round {through}, "
        "which had not begun here; the server's directory was put back, and the epsilon here may be too small"
        for client, through in sorted(ahead.items())
    )
