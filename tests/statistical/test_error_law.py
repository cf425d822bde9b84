"""The error of every exact mechanism against its target law.

A core of mechanisms, one for each path through the code, on a million coordinates: encoders that reject
nothing, a ball and a cross-polytope in blocks, and an error of two parts. The others on 208 thousand.

Each check has a threshold whose false-alarm rate is 1e-6 or less for a correct sampler; with
fixed seeds the outcome is the same every time. Twins show what fails. By how much the statistic is expected
to pass its limit, for a sampler c times too wide and n coordinates:

  law       statistic                              c      n      expected  limit
  Gaussian  scale, in standard deviations          1.02   2e5    12.8      4.9
  Laplace   the same                               1.02   2e5    8.9       4.9
  Gaussian  Kolmogorov-Smirnov, sqrt(n) D: 0.242   1.05   2e5    5.4       2.7
  Laplace   (c - 1) sqrt(n), and 0.184             1.05   2e5    4.1       2.7
  Gaussian  the same of norms of 8: 1.56           1.05   2e5    12.3      2.7
  Laplace   (c - 1) sqrt(n / 8), and 1.12          1.05   2e5    8.8       2.7
  Gaussian  sqrt(n) D                              1.02   1e6    4.8       2.7
  Laplace   sqrt(n) D                              1.02   1e6    3.7       2.7

The deviation of the statistics is 1 of the scale and about 0.5 of sqrt(n) D.
"""

import functools

import jax
import numpy as np
import pytest
from mechanisms import programs
from scipy import special, stats

from cepam_jax import mechanisms
from cepam_jax.mechanisms import RANGE, Keys

MILLION = 1_000_000
SIZE = 13 * programs.LONG  # 207,987
FALSE_ALARM = 1e-6
BLOCK = 8  # coordinates of a sub-vector whose norm is tested
LAWS = {name: mechanisms.make(name).about.law for name in programs.NAMES}
EXACT = [name for name, law in LAWS.items() if law in ("gaussian", "laplace")]
assert len(EXACT) >= 12
# The smaller part of the error sets the limit.
SMALLER = {"split_z1": 0.5**0.5, "split_d4": 0.2**0.5, "split_rotated_e8": 0.5**0.5}
CORE = ("lrsuq_gaussian_z1", "lrsuq_gaussian_d4", "lrsuq_laplace_z1", "lrsuq_laplace_z2", "split_z1")
CORE += ("rotated_e8",)


def case(name, *rest, size=SIZE):
    """A parameter, beside the other tests that use the same programs."""
    if size == SIZE:
        return programs.param(name, *rest, size)
    return programs.param(name, *rest, size, group="million", slow=True)


def inputs(kind, size):
    """f64[size], in units of sigma."""
    random = np.random.default_rng(3)
    index = np.arange(size)
    return {
        "zeros": lambda: np.zeros(size),
        "constant": lambda: np.full(size, 0.77),
        "large": lambda: random.normal(size=size) * 1e3,
        # Of so many, some would be too large to be coded.
        "heavy": lambda: np.clip(random.standard_cauchy(size), -RANGE / 4, RANGE / 4),
        # Half-integer multiples of the typical cell width, and a hair to either side.
        "borders": lambda: (index % 7 + 0.5 + 1e-6 * (index % 3 - 1)) * 2 * np.sqrt(3),
        # Just below the largest update that is coded: here f32 is as coarse as it may be.
        "limit": lambda: random.choice([-1, 1], size) * random.uniform(0.5, 0.999, size) * RANGE,
    }[kind]()


def decoded(name, x, knobs, seed):
    """What becomes of a million coordinates at once, or of every `LONG` of them with keys of their own."""
    if len(x) == MILLION:
        keys = Keys(jax.random.key(seed), jax.random.key(seed + 1))
        return np.asarray(programs.decoded(name)(keys, x, knobs), np.float64)
    mechanism, found = programs.compiled(name), []
    for number, part in enumerate(x.reshape(-1, programs.LONG)):
        keys = Keys(jax.random.key(seed + 2 * number), jax.random.key(seed + 2 * number + 1))
        found.append(mechanism.decode(keys.shared, mechanism.encode(keys, part, knobs), knobs))
    return np.concatenate(found).astype(np.float64)


@functools.lru_cache(maxsize=8)
def errors(name, kind, sigma, size, seed=11):
    """(law, errors over sigma, update over sigma)."""
    sigma = np.float32(sigma)
    x = (inputs(kind, size) * (SMALLER.get(name, 1) if kind == "limit" else 1) * sigma).astype(np.float32)
    x_hat = decoded(name, x, programs.KNOBS._replace(sigma=sigma), seed)
    x, sigma = x.astype(np.float64), np.float64(sigma)
    return LAWS[name], (x_hat - x) / sigma, x / sigma


def kolmogorov_smirnov(values, cdf):
    """The p-value: `scipy.stats.kstest`, without what it does for every other kind of test."""
    below = cdf(np.sort(values))
    size = len(values)
    ranks = np.arange(size + 1) / size
    return stats.kstwo.sf(max((ranks[1:] - below).max(), (below - ranks[:-1]).max()), size)


def law_p_values(error, law):
    """Kolmogorov-Smirnov p-values of normalised coordinates and of norms of sub-vectors."""
    blocks = error[: len(error) - len(error) % BLOCK].reshape(-1, BLOCK)
    if law == "gaussian":
        coordinate, norms = special.ndtr, np.square(blocks).sum(1)
        norm = lambda values: special.gammainc(BLOCK / 2, values / 2)  # noqa: E731
    else:  # standard deviation 1: scale 1/sqrt 2
        coordinate, norms = laplace_cdf, np.abs(blocks).sum(1)
        norm = lambda values: special.gammainc(BLOCK, values * 2**0.5)  # noqa: E731
    return kolmogorov_smirnov(error, coordinate), kolmogorov_smirnov(norms, norm)


def scale_p_value(error, law):
    """By the sum that is sufficient for the scale: of squares, chi-squared, or of magnitudes, gamma."""
    if law == "gaussian":
        shape, total = len(error) / 2, error @ error / 2
    else:
        shape, total = len(error), np.abs(error).sum() * 2**0.5
    return 2 * min(special.gammainc(shape, total), special.gammaincc(shape, total))


def laplace_cdf(values):
    tail = np.exp(-np.abs(values) * 2**0.5) / 2
    return np.where(values < 0, tail, 1 - tail)


def normalized(values):
    return (values - values.mean()) / values.std()


def correlations(error, x):
    """Correlations that are zero for independent coordinates independent of x, times sqrt(size)."""
    plain, squares = normalized(error), normalized(np.square(error))
    found = [a[:-lag] @ a[lag:] for a in (plain, squares) for lag in (1, 2, 3, 5)]
    if x.std() > 0:
        ranks = np.clip(x, *np.quantile(x, [0.01, 0.99]))  # a correlation with Cauchy means nothing
        found += [plain @ normalized(ranks), squares @ normalized(np.abs(ranks))]
    return np.abs(found) / np.sqrt(len(error))


# Two-sided, with every correlation at the same level.
CORRELATION_LIMIT = stats.norm.isf(FALSE_ALARM / 2)


KINDS = ("zeros", "constant", "large", "heavy", "borders", "limit")
CASES = [case(name, kind, 0.05) for name in EXACT for kind in KINDS if name not in CORE]
CASES += [case(n, k, 0.05, size=MILLION) for n in CORE for k in ("zeros", "heavy", "borders", "limit")]
CASES += [case(n, k, (1e-3, 7.0)[i % 2]) for n in CORE for i, k in enumerate(KINDS[:-1])]


@pytest.mark.parametrize(("name", "kind", "sigma", "size"), CASES)
def test_error_has_exactly_the_target_law(name, kind, sigma, size):
    law, error, x = errors(name, kind, sigma, size)
    assert min(law_p_values(error, law)) > FALSE_ALARM
    assert scale_p_value(error, law) > FALSE_ALARM
    assert correlations(error, x).max() < CORRELATION_LIMIT


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [case(n, "limit", size=MILLION) if n in CORE else case(n, "large") for n in EXACT],
)
def test_a_sampler_too_wide_fails(name, kind, size):
    """By 2 %. Of fewer coordinates the Kolmogorov-Smirnov tests notice 5 %."""
    law, error, _ = errors(name, kind, 0.05, size)
    assert scale_p_value(error * 1.02, law) < FALSE_ALARM
    assert scale_p_value(error / 1.02, law) < FALSE_ALARM
    assert max(law_p_values(error * (1.02 if size == MILLION else 1.05), law)) < FALSE_ALARM


@pytest.mark.parametrize(("name", "size"), [case(name, size=MILLION) for name in CORE])
def test_beyond_the_limit_the_law_would_be_lost(name, size):
    """Errors on the grid that f32 has at 8 times the limit: why nothing is coded there."""
    law, error, _ = errors(name, "zeros", 0.05, size)
    grid = 8 * float(RANGE) * 2.0**-23
    cdf = special.ndtr if law == "gaussian" else laplace_cdf
    assert kolmogorov_smirnov(np.round(error / grid) * grid, cdf) < FALSE_ALARM


@pytest.mark.parametrize(
    ("name", "size"), [case(name, size=MILLION if name in CORE else SIZE) for name in EXACT]
)
def test_the_other_law_fails(name, size):
    law, error, _ = errors(name, "zeros", 0.05, size)
    other = "laplace" if law == "gaussian" else "gaussian"
    assert max(law_p_values(error, other)) < FALSE_ALARM


def uniform_cdf(values):
    return np.clip(values + 0.5, 0, 1)


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        case(name, kind, size=size)
        for name, size in (("sdq_z1", MILLION), ("sdq_z2", SIZE))
        for kind in ("zeros", "large", "borders", "limit")
    ],
)
def test_dithered_error_is_uniform_and_independent(name, kind, size):
    """Of 2e5, sqrt(n) D is 4.4 for an error 2 % too wide."""
    step = np.float32(0.3)
    x = (inputs(kind, size) * (step if kind == "limit" else 0.05)).astype(np.float32)
    x_hat = decoded(name, x, programs.KNOBS._replace(step=step), 1)
    error = (x_hat - x) / np.float64(step)
    assert kolmogorov_smirnov(error, uniform_cdf) > FALSE_ALARM
    assert correlations(error, x.astype(np.float64)).max() < CORRELATION_LIMIT
    assert kolmogorov_smirnov(error * 1.02, uniform_cdf) < FALSE_ALARM


@pytest.mark.parametrize(("name", "step", "size"), [case("jopeq_gaussian", 3), case("noise_gaussian_sdq", 6)])
def test_noise_beside_a_coarse_cell_is_not_gaussian(name, step, size):
    """Why LRSUQ exists: matched in variance, private noise and a uniform error miss the law.

    Three quarters of the variance are the cell's: a kurtosis of -0.68, and sqrt(n) D of about 7.
    """
    x = inputs("large", size).astype(np.float32)
    knobs = programs.KNOBS._replace(sigma=np.float32(1), step=np.float32(step))
    error = decoded(name, x, knobs, 1) - x
    assert kolmogorov_smirnov(error / error.std(), special.ndtr) < FALSE_ALARM


def test_a_uniform_cell_without_layers_fails():
    """Plain dithered quantization of the same variance: what a broken latent would give."""
    error = np.random.default_rng(0).uniform(-np.sqrt(3), np.sqrt(3), SIZE)
    assert max(law_p_values(error, "gaussian")) < FALSE_ALARM


@pytest.mark.parametrize(("name", "size"), [case("lrsuq_gaussian_z1", size=MILLION)])
def test_dependence_on_the_input_is_noticed(name, size):
    _, error, x = errors(name, "limit", 0.05, size)
    leaky = error + 0.01 * x / x.std()
    assert correlations(leaky, x).max() > CORRELATION_LIMIT


def test_a_shared_radius_in_a_block_is_noticed():
    """Coordinates that share a layer without being jointly Gaussian have dependent squares."""
    random = np.random.default_rng(0)
    radius = np.repeat(stats.chi(3).rvs(SIZE // 2, random_state=random), 2)
    error = radius * random.uniform(-1, 1, len(radius))
    assert law_p_values(error, "gaussian")[0] > FALSE_ALARM  # every coordinate by itself is fine
    assert correlations(error, np.zeros(len(error))).max() > CORRELATION_LIMIT


def test_the_p_value_is_scipy_s():
    error = np.random.default_rng(0).normal(size=3000)
    assert kolmogorov_smirnov(error, special.ndtr) == pytest.approx(stats.kstest(error, "norm").pvalue)
    assert law_p_values(error, "laplace")[0] == pytest.approx(
        stats.kstest(error, stats.laplace(scale=2**-0.5).cdf).pvalue
    )
