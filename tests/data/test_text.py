"""Plays as examples: whose speeches, which windows, and that nothing is lost or counted twice."""

import hashlib

import numpy as np
import pytest

from cepam_jax import settings
from cepam_jax.data import sources, text
from cepam_jax.errors import DataNotPreparedError, DatasetError
from cepam_jax.run.config import defaults

PLAY = "A:\nOne, two.\nThree!\n\nB:\nNo.\n\nA:\nFour.\n\nC:\n\nB:\nYes?\n\n\nA:\nFive.\n"
OPTIONS = dict(sources._defaults("text"))


def test_the_embedded_play_is_what_it_was():
    play = text.play()
    assert len(play) == 133_465
    assert hashlib.sha256(play.encode()).hexdigest() == (
        "daf75ba27c60f42b32c77b4a77d3bbd98c0bd5d3f3ee3e47376bfa9687b8cde7"
    )
    assert text.decode(text.encode(play)) == play


def test_tiny_shakespeare_is_the_public_text(tfds_dir):
    """All plays, put together from the splits; the embedded play is a part of them."""
    public = sources.load("tiny_shakespeare", tfds_dir, (("text", _fields(split="public", stride=65)),))
    assert public.owners is None and public.test_owners is None
    splits = text.prepared("tiny_shakespeare", tfds_dir, ("train", "validation", "test"))
    whole = b"".join(piece["text"] for split in splits for piece in split)
    assert hashlib.sha256(whole).hexdigest() == (
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    )
    assert text.play().encode() in whole and "".join(sorted(set(whole.decode()))) == text.ALPHABET
    assert (public.test["length"] - 1).sum() == 111_540 - 1  # the public validation part, but its first
    first = "".join(map(text.decode, public.train["characters"][:-1]))
    assert first == whole.decode()[: len(first)] and len(first) == 1_003_854 // 65 * 65
    speakers = sources.load("tiny_shakespeare", tfds_dir)
    assert len(np.unique(speakers.owners)) == len(np.unique(speakers.test_owners)) == 202


def _fields(**changes):
    return tuple(sorted({**OPTIONS, **changes}.items()))


def test_a_missing_text_says_how_to_get_it(tmp_path):
    with pytest.raises(DataNotPreparedError, match=r"tfds.builder\('tiny_shakespeare'"):
        sources.load("tiny_shakespeare", str(tmp_path))


def test_speeches_are_put_together_by_speaker():
    assert text.speeches(PLAY) == {"A": "One, two.\nThree!\n\nFour.\n\nFive.\n", "B": "No.\n\nYes?\n"}
    assert list(text.speakers(PLAY, 3)) == ["A"] and list(text.speakers(PLAY, 2)) == ["A", "B"]
    with pytest.raises(DatasetError, match=r"a speech begins with 'Five\.'; it must begin with a line"):
        text.speeches("A:\nFour.\n\nFive.\n")
    with pytest.raises(DatasetError, match="the text has the character 'é'"):
        text.encode("née")


def test_even_and_odd_speakers_are_all_of_them():
    said = text.speakers(text.play(), 10)
    even, odd = (text.chosen(said, part) for part in ("even", "odd"))
    assert not even.keys() & odd.keys() and {**even, **odd} == text.chosen(said, "all") == said


@pytest.mark.parametrize("length", [4, 5, 8, 9, 10, 17, 40])
@pytest.mark.parametrize("stride", [1, 3, 20])
def test_windows_reach_from_beginning_to_end(length, stride):
    codes = np.arange(1, length + 1, dtype=np.uint8)
    found, lengths = text.windows(codes, 9, stride)
    assert found.shape == (len(lengths), 9)
    for window, counts in zip(found, lengths, strict=True):
        np.testing.assert_array_equal(window[:counts], np.arange(window[0], window[0] + counts))
        assert not window[counts:].any()
    assert found[0, 0] == 1
    if stride < 9:
        assert found[-1].max() == length and set(found[found > 0]) == set(codes)
        assert length < 9 or (lengths == 9).all()


@pytest.mark.parametrize("stride", [9, 10, 20])
def test_windows_that_do_not_overlap_have_no_character_twice(stride):
    """An epsilon for examples of which each has its own characters is asked for with such a stride."""
    for length in range(10, 60):
        found, lengths = text.windows(np.arange(1, length + 1, dtype=np.uint8), 9, stride)
        inside = found[found > 0]
        assert len(set(inside)) == len(inside) and (lengths >= 2).all()
        assert len(found) == len(range(0, length - 1, stride))


@pytest.mark.parametrize("length", [2, 8, 9, 10, 16, 17, 18, 40])
def test_passages_predict_each_character_once(length):
    codes = np.arange(1, length + 1, dtype=np.uint8)
    found, lengths = text.passages(codes, 8)
    predicted = [value for window, counts in zip(found, lengths, strict=True) for value in window[1:counts]]
    assert predicted == list(range(2, length + 1))
    assert not any(window[counts:].any() for window, counts in zip(found, lengths, strict=True))


def test_each_speaker_owns_what_they_say_and_no_more():
    data = text.of_text(text.play(), {**OPTIONS, "context": 32, "stride": 5, "least_lines": 20})
    said = text.speakers(text.play(), 20)
    assert (
        len(said) == data.owners.max() + 1 == len(np.unique(data.owners)) == len(np.unique(data.test_owners))
    )
    for number, words in enumerate(said.values()):
        cut = int(len(words) * 0.9)
        mine = data.train["characters"][data.owners == number], data.train["length"][data.owners == number]
        texts = [text.decode(window[:counts]) for window, counts in zip(*mine, strict=True)]
        assert all(piece in words[:cut] for piece in texts)
        assert words[:cut].startswith(texts[0]) and words[:cut].endswith(texts[-1])
        tested = data.test["length"][data.test_owners == number]
        assert (tested - 1).sum() == len(words) - cut - 1


def test_settings_reach_the_data_set():
    config = defaults()
    config.data.name, config.text.context, config.text.part = "shakespeare", 16, "odd"
    data = sources.load_examples("shakespeare", "", sources.options_of(config))
    assert data.train["characters"].shape[1] == 17 and dict(data.facts)["context"] == 16
    assert data.owners.max() + 1 == 11
    assert sources.load_examples("shakespeare") is not data
    assert dict(sources.load_examples("shakespeare").facts)["context"] == 64
    config.data.name = "digits"
    assert sources.options_of(config) == ()
    config.text.least_lines = 10_000
    config.data.name = "shakespeare"
    with pytest.raises(DatasetError, match="data set 'shakespeare': no speaker has config.text.least_lines"):
        sources.load("shakespeare", "", sources.options_of(config))
    assert {name for name in settings.FIELDS if name.startswith("text.")} == {
        f"text.{name}" for name in OPTIONS
    }
