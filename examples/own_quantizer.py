"""Your own quantizer: checked against the laws that every mechanism obeys, then trained with.

  python -m examples.own_quantizer

Three levels, drawn so that the mean is right: Wen, Xu, Yan, Wu, Wang, Chen, Li: TernGrad: Ternary Gradients
to Reduce Communication in Distributed Deep Learning, arXiv 1705.07878, section 3.1.
"""

import jax
import jax.numpy as jnp
import numpy as np

import cepam_jax as cepam
from cepam_jax.mechanisms import About, Keys, Knobs, Mechanism, Message
from cepam_jax.mechanisms.base import Code, check_vector


def ternary() -> Mechanism:
    """Each coordinate is sent as -s, 0 or s, where s = max|x|, with probability |x|/s other than 0."""

    def encode(keys, x, knobs, weight=None):
        check_vector(x)
        scale = jnp.max(jnp.abs(x), initial=0.0)  # NaN if a coordinate is: then all is decoded to NaN
        sent = jax.random.uniform(keys.private, x.shape) * scale < jnp.abs(x)
        symbols = jnp.where(sent, jnp.sign(x), 0.0).astype(jnp.int32) + 1
        return Message(symbols, None, {"scale": scale}, x.shape[0])

    def decode(shared, message, knobs):
        return message.side["scale"] * (message.symbols - 1.0)

    def bits(shared, message, knobs, weight=None):
        sent = message.symbols.shape[0] if weight is None else jnp.sum(weight > 0)
        return jnp.log2(3.0) * sent + 32

    def variance(x, knobs):
        return jnp.max(jnp.abs(x)) * jnp.abs(x) - jnp.square(x)

    # What it states about itself is all that the accountant knows: no noise of its own, so no epsilon.
    about = About("ternary", "other", unbiased=True, local=False, randomness=("private",))
    code = Code("levels", alphabet=lambda knobs: (0, 3))
    return Mechanism(encode, decode, bits, lambda x, knobs: x, about, code, variance)


def check_laws(mechanism: Mechanism, repeats: int = 4000) -> None:
    """The laws of `cepam_jax/mechanisms/base.py` that go wrong most easily."""
    x, knobs = jnp.linspace(-1.0, 2.0, 50), Knobs()
    shared = jax.random.key(1)

    def error(private):
        message = mechanism.encode(Keys(shared, private), x, knobs)
        return mechanism.decode(shared, message, knobs) - mechanism.reference(x, knobs)

    errors = jax.vmap(error)(jax.random.split(jax.random.key(2), repeats))
    expected = mechanism.variance(x, knobs)
    assert np.all(np.abs(errors.mean(0)) < 5 * np.sqrt(expected / repeats) + 1e-6), "law 2: the mean is zero"
    spread = np.mean(np.square(errors)) / np.mean(expected)
    assert abs(spread - 1) < 0.05, "law 2: the mean square is `variance`"
    keys = Keys(shared, jax.random.key(3))
    broken = mechanism.decode(shared, mechanism.encode(keys, x.at[7].set(jnp.nan), knobs), knobs)
    assert not np.isfinite(broken).all(), "law 5: an invalid update never comes back as a valid one"
    first, second = (mechanism.encode(keys, x, knobs) for _ in range(2))
    assert np.array_equal(first.symbols, second.symbols), "law 6: the same keys give the same message"
    packed = cepam.wire.pack(first, mechanism, shared, knobs)
    unpacked = cepam.wire.unpack(packed, mechanism, shared, knobs, x.size)
    assert np.array_equal(unpacked.symbols, first.symbols), "law 7: bytes hold the message"
    print(f"the laws hold; {x.size} coordinates took {len(packed)} bytes")


def main(rounds: int = 10) -> dict[str, float]:
    """Checks, trains with noise before the quantizer, and returns the metrics."""
    check_laws(ternary())
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 10)).astype(np.float32)
    data = {"inputs": x, "labels": (x[:, 0] * x[:, 1] > 0).astype(np.int32)}
    mechanisms = cepam.mechanisms
    # The noise is the client's own and comes first, so it is there whatever the quantizer does to it.
    noisy = mechanisms.chain(mechanisms.clip("l2"), mechanisms.add_noise("gaussian"), ternary())
    federation = cepam.Federation(
        cepam.tasks.classification(model(), example=x[0]),
        cepam.clients(data, number=30),
        noisy,
        sigma=0.02,
        clip=1.0,
        steps=10,
        learning_rate=0.2,
        momentum=0.5,
    )
    state = federation.initialize()
    for _ in range(rounds):
        state, report = federation.step(state)
    print(f"{float(report.participants.bits.mean()) / federation.coordinates:.2f} bits per coordinate")
    print(federation.privacy())
    return federation.evaluate(state, data)


def model():
    """A small network."""
    import flax.linen as nn  # noqa: PLC0415  the quantizer above needs nothing of training

    return nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(2)])


if __name__ == "__main__":
    print(main())
