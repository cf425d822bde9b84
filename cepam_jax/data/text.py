"""Plays as examples: windows of characters, and speakers who own what they say.

A text is a row of speeches with a blank line between them; the first line of a speech names its speaker:

  ROMEO:
  But, soft! what light through yonder window breaks?
  It is the east, and Juliet is the sun.

Examples are {"characters": uint8[context + 1], "length": int32[]}: numbers of characters in `ALPHABET`, and
how many of them count. Where a text is shorter than a window, the rest is filled up and does not count.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np

from cepam_jax import settings
from cepam_jax.data import sources
from cepam_jax.data.examples import Examples, examples
from cepam_jax.data.prepared import prepared
from cepam_jax.errors import DatasetError

# All characters of tiny Shakespeare. Written down here, so that it follows from nobody's text.
ALPHABET = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_FREE = {"compiled": False}
settings.declare(
    "text",
    {
        "split": settings.choice(
            "speakers",
            "speakers: each one's speeches, the last part of them for tests; public: the text as it is, its "
            "last part for tests, of nobody.",
            ("speakers", "public"),
            **_FREE,
        ),
        "part": settings.choice(
            "all",
            "Of split=speakers: all of them, or those with even or odd numbers in the alphabet's order, so "
            "that a model may begin with what others said.",
            ("all", "even", "odd"),
            **_FREE,
        ),
        "context": settings.integer(64, "Characters that a model sees at most.", high=4096, **_FREE),
        "stride": settings.integer(
            8, "Characters from the beginning of one training window to that of the next.", **_FREE
        ),
        "least_lines": settings.integer(10, "Speakers with fewer lines are left out.", **_FREE),
        "held_out": settings.number(
            0.1,
            "Last part of each text, for tests.",
            lambda v: 0.001 <= v <= 0.999,
            "a number between 0.001 and 0.999",
            **_FREE,
        ),
    },
    "Texts, their speakers and windows.",
)


@settings.rule
def _rules(fields):
    """A clip of examples bounds a window's part; where windows overlap, a character has several."""
    if fields["text.split"] == "public":
        why = "where config.text.split is 'public': the text is then of nobody"
        read = tuple(f"text.{name}" for name in ("split", "context", "stride", "held_out"))
        yield from settings.unread(fields, "text", why, read)
    clipped = fields.get("local.example_clip", 0) > 0 and fields.get("task") == "next_character"
    yield (
        not clipped or fields["text.stride"] > fields["text.context"],
        "text.stride",
        f"above config.text.context = {fields['text.context']} where config.local.example_clip is positive: "
        "windows that overlap have a character several times, and an epsilon for examples would be too small "
        "for it",
    )


_SHORTEST = 4  # characters of a text of which both parts have one to predict


def encode(text: str) -> np.ndarray:
    """uint8[characters], the place of each in `ALPHABET`.

    Raises:
      DatasetError: the text has a character that the alphabet does not; names it.
    """
    places = {character: place for place, character in enumerate(ALPHABET)}
    try:
        return np.array([places[character] for character in text], np.uint8)
    except KeyError as error:
        raise DatasetError(
            f"the text has the character {error.args[0]!r}, which text.ALPHABET has not: {ALPHABET!r}"
        ) from error


def decode(codes: Any) -> str:
    """The text of numbers from `encode`."""
    return "".join(ALPHABET[code] for code in np.asarray(codes).tolist())


def speeches(text: str) -> dict[str, str]:
    """Speaker -> what they say, their speeches in order with a blank line between; in alphabetical order.

    Speakers of one name are one speaker, also those of several plays. A speech without words is left out.

    Raises:
      DatasetError: a speech does not begin with a line "SPEAKER:".
    """
    said: dict[str, list[str]] = {}
    for block in filter(None, (block.strip("\n") for block in text.split("\n\n"))):
        name, _, words = block.partition("\n")
        if not name.endswith(":"):
            raise DatasetError(f"a speech begins with {name[:40]!r}; it must begin with a line 'SPEAKER:'")
        if words:
            said.setdefault(name[:-1], []).append(words)
    return {name: "\n\n".join(said[name]) + "\n" for name in sorted(said)}


def speakers(text: str, least_lines: int = 1) -> dict[str, str]:
    """As `speeches`, of the speakers with so many lines; blank lines between speeches are none."""
    enough = {}
    for name, said in speeches(text).items():
        if sum(map(bool, said.split("\n"))) >= least_lines and len(said) >= _SHORTEST:
            enough[name] = said
    return enough


def chosen(said: Mapping[str, str], part: str) -> dict[str, str]:
    """All speakers, or those with "even" or "odd" numbers in their order, from 0 on."""
    first, step = {"all": (0, 1), "even": (0, 2), "odd": (1, 2)}[part]
    return dict(list(said.items())[first::step])


def windows(codes: np.ndarray, size: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of a text, from beginning to end.

    Args:
      codes: uint8[n].
      size: of a window.
      stride: from one window to the next.

    Returns:
      (uint8[windows, size], int32[windows] how many characters count). The last window ends where
      the text does. Where windows do not overlap (stride >= size) the last does not either: it is filled up
      with zeros that do not count, as the only one of a text shorter than a window is.
    """
    if len(codes) <= size:
        return np.pad(codes, (0, size - len(codes)))[None], np.array([len(codes)], np.int32)
    if stride >= size:
        return _pieces(codes, size, np.arange(0, len(codes) - 1, stride))
    starts = np.arange(0, len(codes) - size + 1, stride)
    if starts[-1] + size < len(codes):
        starts = np.append(starts, len(codes) - size)
    every = np.lib.stride_tricks.sliding_window_view(codes, size)
    return every[starts], np.full(len(starts), size, np.int32)


def passages(codes: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of context + 1 characters in which each character but the first is predicted once.

    Returns:
      As `windows`; the last one is filled up where the text does not end with it.
    """
    return _pieces(codes, context + 1, np.arange(0, len(codes) - 1, context))


def _pieces(codes: np.ndarray, size: int, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows from these starts on, filled up with zeros behind the text's end; as `windows`."""
    lengths = np.minimum(len(codes) - starts, size).astype(np.int32)
    padded = np.pad(codes, (0, size))
    return np.lib.stride_tricks.sliding_window_view(padded, size)[starts], lengths


def of_text(text: str, options: Mapping[str, Any]) -> Examples:
    """The examples of a play.

    Args:
      text: speeches, as the module says.
      options: fields of the section "text" of a configuration.

    Raises:
      DatasetError: no speaker has enough lines; a speech or a character that there may not be.
    """
    context, public = options["context"], options["split"] == "public"
    whose = {"": text} if public else chosen(speakers(text, options["least_lines"]), options["part"])
    if not whose or len(text) < _SHORTEST:
        raise DatasetError(
            f"no speaker has config.text.least_lines = {options['least_lines']} lines; ask for fewer"
        )
    found: dict[str, list] = {"train": [], "test": []}
    for said in whose.values():
        codes = encode(said)
        cut = min(max(int(len(codes) * (1 - options["held_out"])), 2), len(codes) - 2)
        found["train"].append(windows(codes[:cut], context + 1, options["stride"]))
        found["test"].append(passages(codes[cut:], context))
    arrays, owners = {}, {}
    for part, pieces in found.items():
        characters, lengths = (np.concatenate(each) for each in zip(*pieces, strict=True))
        # Windows may look into one array; what is kept owns its numbers.
        arrays[part] = {"characters": np.ascontiguousarray(characters), "length": lengths}
        owners[part] = np.repeat(np.arange(len(pieces)), [len(each[1]) for each in pieces])
    return examples(
        arrays["train"],
        arrays["test"],
        owners=None if public else owners["train"],
        test_owners=None if public else owners["test"],
        context=context,
        vocabulary=len(ALPHABET),
    )


def play() -> str:
    """William Shakespeare: Romeo and Juliet, 133,465 characters, in the package; in the public domain.

    As in tiny Shakespeare (Karpathy: char-rnn), of which it is a part.
    """
    return resources.files("cepam_jax.data").joinpath("romeo_and_juliet.txt").read_text("ascii")


@sources.register
def shakespeare(data_dir, *, text):
    """Romeo and Juliet by William Shakespeare, embedded; its speakers are the owners."""
    del data_dir
    return of_text(play(), text)


@sources.register
def tiny_shakespeare(data_dir, *, text):
    """A million characters of Shakespeare's plays, from TFDS; the speakers are the owners.

    The splits of TFDS are the text cut at 90 % and 95 %; here they are one text again, and the setting
    text.split says how it is divided.
    """
    splits = prepared("tiny_shakespeare", data_dir, ("train", "validation", "test"))
    whole = b"".join(bytes(piece["text"]) for split in splits for piece in split)
    return of_text(whole.decode("ascii"), text)
