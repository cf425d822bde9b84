"""Audits accept what is exact, and expose what is not."""

import jax
import numpy as np
import pytest

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import Knobs
from cepam_jax.privacy import audit
from experiments.audit import accountant_epsilon, canary

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

KNOBS = Knobs(sigma=1.0, step=1.0, bits=4.0, levels=16.0)
EXACT = ["lrsuq_gaussian_z1", "lrsuq_laplace_z1", "lrsuq_gaussian_d4", "split_z1", "sdq_z1", "noise_gaussian"]


def weaker(mechanism, factor):
    """The mechanism with noise of `factor` times the stated deviation."""
    less = lambda knobs: knobs._replace(sigma=knobs.sigma * factor)  # noqa: E731
    return mechanism._replace(
        encode=lambda keys, x, knobs: mechanism.encode(keys, x, less(knobs)),
        decode=lambda shared, message, knobs: mechanism.decode(shared, message, less(knobs)),
    )


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_mechanism_passes(name):
    """False alarm 1e-6 over all tests of a mechanism."""
    findings = audit.exactness(mechanisms.make(name), KNOBS, 200_000)
    assert min(f.p_value for f in findings) > 1e-6 / len(findings)


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_noise_that_is_3_percent_off_is_rejected(factor):
    wrong = weaker(mechanisms.make("lrsuq_gaussian_z1"), factor)
    findings = audit.exactness(wrong, KNOBS, 200_000)
    assert min(f.p_value for f in findings) < 1e-6 / len(findings)


def test_an_error_that_depends_on_x_is_rejected():
    """JoPEQ with a coarse cell has the variance, but not the law."""
    jopeq = mechanisms.make("jopeq_gaussian")
    wrong = jopeq._replace(about=jopeq.about._replace(law="gaussian"))
    findings = audit.exactness(wrong, KNOBS._replace(step=3.0), 200_000)
    assert min(f.p_value for f in findings) < 1e-6
    with pytest.raises(ConfigError, match="states no law"):
        audit.exactness(jopeq, KNOBS, 1000)


def proved(mechanism, adversary="decoded_updates", sigma=1.0, delta=0.01):
    knobs = KNOBS._replace(sigma=sigma)
    scores = audit.membership_scores(mechanism, knobs, canary(mechanism), 40_000, adversary)
    return audit.epsilon_lower_bound(*scores, delta, significance=1e-6)


@pytest.mark.parametrize("name", ["lrsuq_gaussian_z1", "lrsuq_laplace_z1", "lrsuq_gaussian_e8", "split_z1"])
def test_the_bound_stays_below_the_accountant(name):
    """Confidence 1 - 1e-6; and it is no empty bound: at least a third of the accountant's epsilon."""
    mechanism = mechanisms.make(name)
    claimed = accountant_epsilon(mechanism, KNOBS, "decoded_updates", 0.01)
    assert claimed / 3 < proved(mechanism) <= claimed


def test_noise_30_percent_too_small_is_exposed():
    mechanism = mechanisms.make("lrsuq_gaussian_z1")
    knobs = KNOBS._replace(sigma=2.0)
    claimed = accountant_epsilon(mechanism, knobs, "decoded_updates", 0.01)
    assert proved(mechanism, sigma=2.0) <= claimed
    assert proved(weaker(mechanism, 0.7), sigma=2.0) > claimed


def test_the_server_sees_through_cepam_but_not_through_private_noise():
    cepam, split = mechanisms.make("lrsuq_gaussian_z1"), mechanisms.make("split_z1")
    outside = accountant_epsilon(cepam, KNOBS, "decoded_updates", 0.01)
    assert proved(cepam, "server") > 1.5 * outside  # its epsilon is infinite
    assert proved(split, "server") <= accountant_epsilon(split, KNOBS, "server", 0.01)
    with pytest.raises(ConfigError, match="no scalar LRSUQ"):
        audit.membership_scores(mechanisms.make("lrsuq_gaussian_z2"), KNOBS, np.ones(4), 10, "server")


def test_split_is_exact_and_half_private():
    split = mechanisms.split(share=0.25)
    assert float(split.about.server.deviation(KNOBS)) == pytest.approx(0.5)
    assert float(split.about.outsiders.deviation(KNOBS)) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="share is 1"):
        mechanisms.split(share=1)


@pytest.mark.parametrize(
    ("steps", "norm", "server"),
    [
        ((mechanisms.clip("l2"), mechanisms.lrsuq()), "l2", None),
        ((mechanisms.clip("l1"), mechanisms.rotate(), mechanisms.lrsuq("laplace")), "l2", None),
        ((mechanisms.clip("l1"), mechanisms.lrsuq("laplace")), "l1", None),
        ((mechanisms.lrsuq(),), None, None),
        ((mechanisms.add_noise("gaussian"), mechanisms.clip("l2"), mechanisms.sdq()), None, "gaussian"),
        ((mechanisms.clip("l2"), mechanisms.add_noise("gaussian"), mechanisms.sdq()), "l2", "gaussian"),
        ((mechanisms.clip("l2"), mechanisms.split()), "l2", "gaussian"),
        # Which coordinates are largest may change at once: top-k drives updates apart, and leaks besides.
        ((mechanisms.clip("l2"), mechanisms.chain(mechanisms.top_k(), mechanisms.lrsuq())), None, None),
    ],
)
def test_a_chain_knows_what_protects_it(steps, norm, server):
    about = mechanisms.chain(*steps).about
    assert about.sensitivity == norm
    assert (about.server.law if about.server else None) == server
    assert bool(about.leaks) == ("top-k" in about.name)
    assert jax.tree.leaves(about.outsiders.deviation(KNOBS)) == [1.0]
