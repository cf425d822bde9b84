"""The error of every exact mechanism against its target law, on a million coordinates.

Each check has a threshold whose false-alarm rate is 1e-6 or less for a correct sampler; with
fixed seeds the outcome is the same every time. The last tests show that a sampler 2 % too wide
fails, and that the other checks notice what they are for.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cepam_jax import mechanisms
from cepam_jax.mechanisms import Keys, Knobs

SIZE = 1_000_000
FALSE_ALARM = 1e-6
BLOCK = 8  # coordinates of a sub-vector whose norm is tested
EXACT = sorted(name for name in mechanisms.REGISTRY if name.startswith("lrsuq"))


@functools.cache
def round_trip(name):
    mechanism = mechanisms.make(name)
    return mechanism.about, jax.jit(
        lambda keys, x, knobs: mechanism.decode(keys.shared, mechanism.encode(keys, x, knobs), knobs)
    )


def inputs(kind, sigma):
    random = np.random.default_rng(3)
    index = np.arange(SIZE)
    return jnp.asarray(
        {
            "zeros": lambda: np.zeros(SIZE),
            "constant": lambda: np.full(SIZE, 0.77 * sigma),
            "large": lambda: random.normal(size=SIZE) * 1e3 * sigma,
            "heavy": lambda: random.standard_cauchy(SIZE) * sigma,
            # Half-integer multiples of the typical cell width, and a hair to either side.
            "borders": lambda: (index % 7 + 0.5 + 1e-6 * (index % 3 - 1)) * 2 * np.sqrt(3) * sigma,
        }[kind](),
        jnp.float32,
    )


def p_values(error, law):
    """Kolmogorov-Smirnov p-values of normalised coordinates and of norms of sub-vectors."""
    blocks = error[: SIZE - SIZE % BLOCK].reshape(-1, BLOCK)
    if law == "gaussian":
        coordinate, norms, norm = stats.norm(), np.square(blocks).sum(1), stats.chi2(BLOCK)
    else:  # standard deviation 1: scale 1/sqrt 2
        coordinate = stats.laplace(scale=2**-0.5)
        norms, norm = np.abs(blocks).sum(1), stats.gamma(BLOCK, scale=2**-0.5)
    return stats.kstest(error, coordinate.cdf).pvalue, stats.kstest(norms, norm.cdf).pvalue


def correlations(error, x):
    """Correlations that are zero for independent coordinates independent of x, times sqrt(size)."""
    found = [np.corrcoef(error[:-lag], error[lag:])[0, 1] for lag in (1, 2, 3, 5)]
    squares = np.square(error)
    found += [np.corrcoef(squares[:-lag], squares[lag:])[0, 1] for lag in (1, 2, 3, 5)]
    if x.std() > 0:
        ranks = np.clip(x, *np.quantile(x, [0.01, 0.99]))  # a correlation with Cauchy means nothing
        found += [np.corrcoef(error, ranks)[0, 1], np.corrcoef(squares, np.abs(ranks))[0, 1]]
    return np.abs(found) * np.sqrt(SIZE)


# Two-sided, with every correlation at the same level.
CORRELATION_LIMIT = stats.norm.isf(FALSE_ALARM / 2)


def errors(name, kind, sigma, seed=11):
    about, run = round_trip(name)
    x = inputs(kind, sigma)
    keys = Keys(jax.random.key(seed), jax.random.key(seed + 1))
    x_hat = run(keys, x, Knobs(sigma=jnp.float32(sigma)))
    x = np.asarray(x, np.float64)
    return about, (np.asarray(x_hat, np.float64) - x) / np.float64(np.float32(sigma)), x / sigma


@pytest.mark.parametrize("kind", ["zeros", "constant", "large", "heavy", "borders"])
@pytest.mark.parametrize("sigma", [1e-3, 0.05, 7.0])
@pytest.mark.parametrize("name", EXACT)
def test_error_has_exactly_the_target_law(name, kind, sigma):
    about, error, x = errors(name, kind, sigma)
    coordinate, norm = p_values(error, about.law)
    assert coordinate > FALSE_ALARM
    assert norm > FALSE_ALARM
    assert correlations(error, x).max() < CORRELATION_LIMIT


@pytest.mark.parametrize("name", EXACT)
def test_a_sampler_two_percent_too_wide_fails(name):
    about, error, _ = errors(name, "large", 0.05)
    for p in p_values(error * 1.02, about.law):
        assert p < FALSE_ALARM


@pytest.mark.parametrize("name", EXACT)
def test_the_other_law_fails(name):
    about, error, _ = errors(name, "zeros", 0.05)
    other = "laplace" if about.law == "gaussian" else "gaussian"
    assert max(p_values(error, other)) < FALSE_ALARM


def test_a_uniform_cell_without_layers_fails():
    """Plain dithered quantization of the same variance: what a broken latent would give."""
    error = np.random.default_rng(0).uniform(-np.sqrt(3), np.sqrt(3), SIZE)
    assert max(p_values(error, "gaussian")) < FALSE_ALARM


def test_dependence_on_the_input_is_noticed():
    _, error, x = errors("lrsuq_gaussian_z1", "large", 0.05)
    leaky = error + 0.01 * x / x.std()
    assert correlations(leaky, x).max() > CORRELATION_LIMIT


def test_a_shared_radius_in_a_block_is_noticed():
    """Coordinates that share a layer without being jointly Gaussian have dependent squares."""
    random = np.random.default_rng(0)
    radius = np.repeat(stats.chi(3).rvs(SIZE // 2, random_state=random), 2)
    error = radius * random.uniform(-1, 1, SIZE)
    assert p_values(error, "gaussian")[0] > FALSE_ALARM  # every coordinate by itself is fine
    assert correlations(error, np.zeros(SIZE)).max() > CORRELATION_LIMIT
