import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.mechanisms import counter


@pytest.mark.parametrize(
    ("key", "count", "expected"),  # known answers of the Random123 distribution
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_known_answers(key, count, expected):
    words = counter.threefry2x32(tuple(map(jnp.uint32, key)), tuple(map(jnp.uint32, count)))
    assert tuple(int(word) for word in words) == expected


def test_words_are_addressable():
    stream = counter.stream(jax.random.key(5), 1)
    whole = counter.words(stream, 3, jnp.arange(1000))
    part = counter.words(stream, 3, jnp.arange(700, 710))
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[700:710], b)


def test_streams_differ_and_are_unrelated_to_jax_random():
    key = jax.random.key(5)
    count = jnp.arange(100_000)
    columns = [np.asarray(jax.random.bits(key, count.shape))]
    for tag in (1, 2, 3):
        columns += map(np.asarray, counter.words(counter.stream(key, tag), 0, count))
    correlation = np.corrcoef(np.array(columns, np.float64)) - np.eye(len(columns))
    # 21 pairs at 5 standard deviations: false alarm below 2e-5.
    assert np.abs(correlation).max() < 5 / np.sqrt(count.size)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_stream_takes_any_key(implementation):
    stream = counter.stream(jax.random.key(1, impl=implementation), 1)
    raw = counter.stream(jax.random.key_data(jax.random.key(1, impl=implementation)), 1)
    assert [int(word) for word in stream] == [int(word) for word in raw]


def test_centered_is_exact_at_the_ends():
    words = jnp.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], jnp.uint32)
    expected = np.array([0, 2.0**-32, 0.5, -0.5, -(2.0**-32)], np.float32)
    np.testing.assert_array_equal(counter.centered(words), expected)
