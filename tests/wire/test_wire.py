"""Messages as bytes: identity, length, errors, and the same bytes for every machine."""

import functools
import os
import pickle
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import xla_flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mechanisms import programs
from mechanisms.programs import EACH, KEYS, KNOBS, LONG, NAMES, SHORT, compiled

from cepam_jax import mechanisms, wire
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import Message, Transform, latents
from cepam_jax.mechanisms.lattices import LATTICES, most_tries
from cepam_jax.wire import WireError, body, coder, header
from cepam_jax.wire.format import _context as context_of


def encoded(name, length, scale=0.1, seed=0):
    x = (scale * np.random.default_rng(seed).normal(size=length)).astype(np.float32)
    if length == LONG:
        message = compiled(name).encode(KEYS, x, KNOBS)
    else:
        message = programs.round_trip(name)(KEYS, x, KNOBS)[0]
    return jax.tree.map(np.asarray, message)


def assert_same(message, back, sent=None):
    """Equal to the bit wherever something is sent."""
    symbols, other = (np.ascontiguousarray(m.symbols).view(np.int32) for m in (message, back))
    everywhere = np.ones(len(symbols), bool) if sent is None else sent
    np.testing.assert_array_equal(symbols[everywhere], other[everywhere])
    for a, b in zip(jax.tree.leaves(message.side), jax.tree.leaves(back.side), strict=True):
        np.testing.assert_array_equal(a, b)
    if sent is None and message.index is not None:
        np.testing.assert_array_equal(message.index, back.index)


def sent_of(mechanism, message):
    if mechanism.code.weight is None:
        return None
    return np.asarray(mechanism.code.weight(KEYS.shared, message, KNOBS)) > 0


@pytest.mark.parametrize("name", EACH)
def test_bytes_are_what_bits_says(name):
    mechanism, length = compiled(name), LONG
    message = encoded(name, length)
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS, round_number=3, client=70_000)
    ideal = float(mechanism.bits(KEYS.shared, message, KNOBS))
    assert abs(8 * len(data) - ideal) < 0.02 * ideal + 8 * 40
    back = wire.unpack(data, mechanism, KEYS.shared, KNOBS, length)
    assert_same(message, back, sent_of(mechanism, message))
    np.testing.assert_array_equal(
        mechanism.decode(KEYS.shared, message, KNOBS), mechanism.decode(KEYS.shared, back, KNOBS)
    )
    said = wire.describe(data)
    assert (said["round"], said["client"], said["length"]) == (3, 70_000, length)
    assert said["bytes"] == len(data)


@st.composite
def messages(draw, name):
    """Anything of the right shape: zeros, small and extreme integers, indices that nobody reaches."""
    mechanism = compiled(name)
    length = draw(st.sampled_from([0, SHORT]))
    # Shapes and side information of a real message; the symbols are then replaced.
    real = encoded(name, length, draw(st.sampled_from([0.0, 1e-6, 0.1, 1e3])))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["real", "zeros", "small", "extreme", "mixed"]))
    size = real.symbols.shape
    if mechanism.code.kind == "float":
        choices = {
            "zeros": np.zeros(size),
            "small": random.normal(size=size),
            "extreme": random.choice([np.nan, np.inf, -np.inf, 3e38, -1e-45], size),
        }
    else:
        choices = {
            "zeros": np.zeros(size),
            "small": random.integers(-3, 4, size),
            "extreme": random.choice([-(2**31), 2**31 - 1, 2**20, -(2**30)], size),
        }
    choices["mixed"] = np.where(random.uniform(size=size) < 0.1, choices["extreme"], choices["small"])
    symbols = real.symbols if kind == "real" else choices[kind].astype(real.symbols.dtype)
    index = real.index
    if index is not None and draw(st.booleans()):
        index = random.choice([0, 1, 5, 300, 2**32 - 1], index.shape).astype(np.uint32)
    return Message(symbols, index, real.side, length)


@pytest.mark.parametrize("name", EACH)
def test_pack_and_unpack_is_the_identity(name):
    mechanism = compiled(name)

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(messages(name), st.booleans())
    def check(message, offsets):
        data = wire.pack(message, mechanism, KEYS.shared, KNOBS, offsets=offsets)
        back = wire.unpack(data, mechanism, KEYS.shared, KNOBS, message.length)
        assert_same(message, back, sent_of(mechanism, message))

    check()


def test_an_update_without_coordinates():
    mechanism = compiled("lrsuq_gaussian_z1")
    message = encoded("lrsuq_gaussian_z1", 0)
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS)
    assert wire.unpack(data, mechanism, KEYS.shared, KNOBS, 0).symbols.shape == (0,)


SEGMENTS = (1000, 3, 501)


@functools.cache
def segmented(lattice):
    """A mechanism for these tensors, an update's message, and what is decoded from it."""
    mechanism = mechanisms.lrsuq("gaussian", lattice, SEGMENTS)
    mechanism = mechanism._replace(encode=jax.jit(mechanism.encode), decode=jax.jit(mechanism.decode))
    message = mechanism.encode(KEYS, (2 / 3 * programs.updates(sum(SEGMENTS))), KNOBS)
    return mechanism, message, mechanism.decode(KEYS.shared, message, KNOBS)


@pytest.mark.parametrize("lattice", ["Z1", "Z3", "D4"])
@pytest.mark.parametrize("segment", range(3))
def test_one_tensor_is_read_alone(lattice, segment):
    mechanism, message, whole = segmented(lattice)
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS, offsets=True)
    back = wire.unpack(data, mechanism, KEYS.shared, KNOBS, len(whole), segment=segment)
    first = sum(SEGMENTS[:segment])
    here = slice(first, first + SEGMENTS[segment])
    np.testing.assert_array_equal(mechanism.decode(KEYS.shared, back, KNOBS)[here], whole[here])
    # What lies in other blocks is 0: not read, or not told.
    block = mechanism.about.block
    low, high = here.start // block * block, -(-here.stop // block) * block
    assert not back.symbols[:low].any() and not back.symbols[high:].any()
    assert np.count_nonzero(back.symbols) < np.count_nonzero(message.symbols)
    plain = wire.pack(message, mechanism, KEYS.shared, KNOBS)
    assert len(data) - len(plain) <= 12 * len(SEGMENTS)
    with pytest.raises(WireError, match="has no offsets"):
        wire.unpack(plain, mechanism, KEYS.shared, KNOBS, len(whole), segment=segment)
    for wrong in (3, -1, 1.5, True):
        with pytest.raises(ConfigError, match=f"segment is {wrong}; it must be a whole number below 3"):
            wire.unpack(data, mechanism, KEYS.shared, KNOBS, len(whole), segment=wrong)


def test_empty_tensors_count_when_one_is_read_alone():
    mechanism = mechanisms.lrsuq("gaussian", "Z1", (5, 0, 33, 2))
    message = mechanism.encode(KEYS, programs.updates(40), KNOBS)
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS, offsets=True)
    whole = np.asarray(mechanism.decode(KEYS.shared, message, KNOBS))
    for number, here in enumerate((slice(0, 5), slice(5, 5), slice(5, 38), slice(38, 40))):
        back = wire.unpack(data, mechanism, KEYS.shared, KNOBS, 40, segment=number)
        np.testing.assert_array_equal(mechanism.decode(KEYS.shared, back, KNOBS)[here], whole[here])
        elsewhere = np.delete(np.asarray(back.symbols), np.r_[here])
        assert not elsewhere.any()


@pytest.mark.parametrize("key", [np.arange(2), np.zeros((3, 2), np.uint32), jax.random.split(KEYS.shared, 3)])
def test_what_is_no_key_is_named(key):
    mechanism = segmented("Z1")[0]
    with pytest.raises(ConfigError, match=r"shared is '.*'; it must be one PRNG key"):
        wire.pack(segmented("Z1")[1], mechanism, key, KNOBS)


def test_the_header_is_small():
    """Zeros cost nothing else: at most 32 bytes, 2 a segment, and the range coder's last words."""
    mechanism = segmented("Z1")[0]
    message = mechanism.encode(KEYS, np.zeros(sum(SEGMENTS), np.float32), KNOBS)
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS, round_number=2**32 - 1, client=2**32 - 1)
    assert len(data) <= 32 + 2 * len(SEGMENTS) + 8


def test_public_scales_send_nothing_but_symbols():
    mechanism = mechanisms.lrsuq(segments=SEGMENTS, scales="public")
    knobs = KNOBS._replace(scale=jnp.array([-20, -20, -20], jnp.int32))
    x = 2 / 3 * programs.updates(sum(SEGMENTS))
    message = jax.jit(mechanism.encode)(KEYS, x, knobs)
    assert message.side == {}
    data = wire.pack(message, mechanism, KEYS.shared, knobs)
    assert_same(message, wire.unpack(data, mechanism, KEYS.shared, knobs, len(x)))
    assert 8 * len(data) == pytest.approx(
        float(jax.jit(mechanism.bits)(KEYS.shared, message, knobs)), rel=0.02, abs=300
    )
    with pytest.raises(WireError, match="packed with other knobs"):
        other = knobs._replace(scale=jnp.array([-20, -20, -19], jnp.int32))
        wire.unpack(data, mechanism, KEYS.shared, other, len(x))
    with pytest.raises(ConfigError, match="knob scale is None"):
        mechanism.encode(KEYS, x, KNOBS)


@pytest.mark.parametrize("wrong", [-1, 2**32, 2**35, 1.5, "3", None, True])
def test_numbers_that_the_header_cannot_hold_are_named(wrong):
    mechanism, message = compiled("lrsuq_gaussian_z1"), encoded("lrsuq_gaussian_z1", SHORT)
    for field in ("round_number", "client"):
        with pytest.raises(ConfigError, match=f"{field} is .*; it must be a whole number of at least 0"):
            wire.pack(message, mechanism, KEYS.shared, KNOBS, **{field: wrong})
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS)
    with pytest.raises(ConfigError, match="length is .*; it must be a whole number of at least 0"):
        wire.unpack(data, mechanism, KEYS.shared, KNOBS, wrong)


def test_what_cannot_have_been_written_is_named():
    mechanism, message = compiled("lrsuq_gaussian_z2"), encoded("lrsuq_gaussian_z2", SHORT)
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS)
    for wrong in (-0.1, np.float32(np.nan), jnp.float32(0), "0.1"):
        bad = KNOBS._replace(sigma=wrong)
        with pytest.raises(ConfigError, match="knob sigma is .*; it must be a positive number"):
            wire.pack(message, mechanism, KEYS.shared, bad)
        with pytest.raises(ConfigError, match="knob sigma is .*; it must be a positive number"):
            wire.unpack(data, mechanism, KEYS.shared, bad, SHORT)
    with pytest.raises(ConfigError, match="shape of knob sigma is .3,.; it must be .*of one client"):
        wire.pack(message, mechanism, KEYS.shared, KNOBS._replace(sigma=jnp.ones(3)))
    for other in (
        Message(message.symbols[:-1], message.index, message.side, SHORT),
        Message(message.symbols.astype(np.float32), message.index, message.side, SHORT),
        Message(message.symbols, None, message.side, SHORT),
        Message(message.symbols, message.index, {}, SHORT),
    ):
        with pytest.raises(ConfigError, match="as its mechanism writes"):
            wire.pack(other, mechanism, KEYS.shared, KNOBS)


def test_what_differs_is_named():
    mechanism = compiled("lrsuq_gaussian_z2")
    message = encoded("lrsuq_gaussian_z2", SHORT)
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS)
    read = functools.partial(wire.unpack, mechanism=mechanism, shared=KEYS.shared, knobs=KNOBS, length=SHORT)

    def broken(text, changed=data, **arguments):
        with pytest.raises(WireError, match=text):
            read(changed, **arguments)

    broken("truncated: 5 bytes do not hold its header", data[:5])
    broken("not a message of format version 4: they begin with b'PK'", b"PK" + data[2:])
    other_version = bytes([header.VERSION - 1 << 4])
    said = f"format version {header.VERSION - 1}; this program reads {header.VERSION}"
    broken(said, data[:2] + other_version + data[3:])
    broken("corrupt or truncated", data[:-4])
    broken("corrupt or truncated", data[:-1] + bytes([data[-1] ^ 1]))
    broken("has 21 coordinates .expected: 22", length=22)
    broken("packed with another shared key", shared=jax.random.key(5))
    broken("packed with other knobs", knobs=KNOBS._replace(sigma=np.float32(0.2)))
    other = mechanisms.lrsuq("gaussian", "E8")
    broken("lattice Z2, gaussian layers, coded as mixture; expected: lattice E8", mechanism=other)
    tensors = mechanisms.lrsuq("gaussian", "Z2", (20, 1))
    broken("other tensors", mechanism=tensors)
    clipping = mechanisms.chain(mechanisms.clip("l2"), mechanism)
    broken("another mechanism .chain of steps", mechanism=clipping)


# Mechanisms that read each other's messages to other updates, with knobs that both take.
STEP = programs.float32(sigma=0.001, step=0.02, bits=3, clip=1)
PUBLIC = STEP._replace(scale=np.int32([3]))
HALVES = ((2, 3), (4,))


def scaled(by):
    """A step of one's own that says what its inverse goes by."""
    return Transform(
        "scaled",
        forward=lambda keys, x, knobs: (x * np.float32(by), None),
        inverse=lambda shared, y, side, knobs, d: y / np.float32(by),
        identity=f"by {by}",
    )


FOREIGN = {
    "the rate of a lattice": (mechanisms.sdq(), mechanisms.sdq(rate="sigma")),
    "a rate that is measured": (mechanisms.sdq(), mechanisms.sdq(rate="bits")),
    "public scales": (mechanisms.sdq(), mechanisms.sdq(scales="public")),
    "public scales of layers": (
        mechanisms.lrsuq("gaussian", "Z1", coding="mixture"),
        mechanisms.lrsuq("gaussian", "Z1", coding="mixture", scales="public"),
    ),
    "a share": (mechanisms.split(share=0.25), mechanisms.split(share=0.2500001)),
    "shapes": (
        mechanisms.clipped(granularity="tensor", shapes=HALVES),
        mechanisms.clipped(granularity="tensor", shapes=HALVES[::-1]),
    ),
    "shapes in place of one vector": (
        mechanisms.clipped(granularity="tensor", shapes=HALVES),
        mechanisms.clipped(granularity="tensor"),
    ),
    "cells of a secure sum": (mechanisms.secure_sum(cells=1.5), mechanisms.secure_sum(cells=4)),
    "what a step before is undone by": tuple(
        mechanisms.chain(scaled(by), mechanisms.sdq(segments=(10,))) for by in (2.0, 3.0)
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("bare", [False, True])
def test_messages_of_another_mechanism_are_refused(what, bare):
    """Whatever tells it apart: what is read as something else decodes to another update, without a word."""
    for mine, other in (FOREIGN[what], FOREIGN[what][::-1]):
        public = "scale" in mine.about.knobs, "scale" in other.about.knobs
        x = np.linspace(-1, 1, 10, dtype=np.float32) / 10
        knobs, theirs = (PUBLIC if is_public else STEP for is_public in public)
        data = wire.pack(mine.encode(KEYS, x, knobs), mine, KEYS.shared, knobs, bare=bare)
        assert wire.unpack(data, mine, KEYS.shared, knobs, 10).length == 10
        with pytest.raises(WireError, match="another mechanism|other tensors"):
            wire.unpack(data, other, KEYS.shared, theirs, 10)
        if knobs is theirs:  # or they alone would do
            assert said_of(mine, knobs) != said_of(other, knobs)


def said_of(mechanism, knobs):
    """What both sides must agree on of a mechanism and its tensors, as the check of a message has it."""
    found = context_of(mechanism, KEYS.shared, knobs, 10, 0, 0)
    expected = body._expectation(found, body._layout(found))
    return expected.mechanism, expected.segments


def sums_that_vanish(check):
    """How often, of 200, the checks of three random keys and of their exclusive or add up to nothing.

    Of a check that is linear in the key, up to a constant, always; of others with probability 2^-32 each.
    """
    random, found = np.random.default_rng(0), 0
    for _ in range(200):
        keys = [random.bytes(8) for _ in range(3)]
        keys.append(bytes(a ^ b ^ c for a, b, c in zip(*keys, strict=True)))
        checks = [int.from_bytes(check(key), "little") for key in keys]
        found += checks[0] ^ checks[1] ^ checks[2] ^ checks[3] == 0
    return found


def test_bytes_tell_nothing_of_their_key_that_adds_up():
    """The check was a CRC-32 over the key: 32 linear equations for its 64 bits, in every message."""
    expected = header.Expectation(b"lrsuq", b"segments", b"", b"knobs")
    assert sums_that_vanish(lambda key: zlib.crc32(b"lrsuq" + key).to_bytes(4, "little")) == 200
    assert sums_that_vanish(lambda key: expected._replace(key=key).check(b"front", b"rest")) == 0
    hints = [expected._replace(key=bytes([k] * 8)).hints() for k in range(100)]
    assert len({hint[:2] + hint[3:] for hint in hints}) == 1 and len({hint[2] for hint in hints}) > 30


def test_who_has_no_key_cannot_seal_other_bytes():
    """Nor by what changes the check of a sum: the difference of two checks is that of no other pair."""
    rest = [b"\0" * 8, b"\1" * 8, b"\2" * 8, b"\3" * 8]
    expected = header.Expectation(b"lrsuq", b"segments", bytes(8), b"knobs")
    checks = [int.from_bytes(expected.check(b"front", part), "little") for part in rest]
    assert checks[0] ^ checks[1] != checks[2] ^ checks[3]
    linear = [zlib.crc32(part) for part in rest]
    assert linear[0] ^ linear[1] == linear[2] ^ linear[3]


def test_headers_that_nobody_wrote_are_named():
    data = wire.pack(encoded("lrsuq_gaussian_z1", SHORT), compiled("lrsuq_gaussian_z1"), KEYS.shared, KNOBS)
    for changed, text in (
        (data[:2] + bytes([data[2] | 8]) + data[3:], "flags 8, which no such message has"),
        (data[:2] + bytes([data[2] | header.BARE]) + data[3:], "flags 4, which no such message has"),
        (data[:7] + b"\xff\xff\xff\xff\x7f" + data[8:], "a number of more than 32 bits"),
    ):
        with pytest.raises(WireError, match=text):
            wire.describe(changed)
    assert wire.describe(memoryview(data)) == wire.describe(data)
    with pytest.raises(ConfigError, match="data is 'NoneType'; it must be the bytes of a message"):
        wire.describe(None)


def test_scales_and_laws_that_no_encoder_writes_are_named():
    mechanism = compiled("lrsuq_gaussian_z1")
    message = encoded("lrsuq_gaussian_z1", SHORT)
    for name in message.side:
        wrong = Message(message.symbols, None, {**message.side, name: np.int32([65528])}, SHORT)
        with pytest.raises(ConfigError, match=f"the message's {name} is 65528; it must be"):
            wire.pack(wrong, mechanism, KEYS.shared, KNOBS)
    public = mechanisms.lrsuq("gaussian", "Z1", scales="public", coding="mixture")
    for wrong in ([-50.9], [2**31], [np.nan]):
        knobs = KNOBS._replace(scale=np.array(wrong))
        with pytest.raises(ConfigError, match="knob scale is .*; it must be whole numbers from -880 to 880"):
            wire.unpack(b"", public, KEYS.shared, knobs, SHORT)


def mutated(data, random):
    """One of: bytes flipped, cut off, doubled, inserted, exchanged."""
    kind = random.integers(5)
    changed = bytearray(data)
    a, b = sorted(random.integers(0, len(data), 2))
    if kind == 0:
        for _ in range(random.integers(1, 5)):
            changed[random.integers(len(data))] ^= 1 << random.integers(8)
    elif kind == 1:
        del changed[a:]
    elif kind == 2:
        changed[a:a] = changed[a:b]
    elif kind == 3:
        changed[a:a] = random.bytes(random.integers(1, 9))
    else:
        changed[a], changed[b] = changed[b], changed[a]
    return bytes(changed)


@pytest.mark.parametrize(
    "name",
    [
        programs.param(name)
        for name in ["lrsuq_gaussian_z1", "lrsuq_gaussian_d4", "top_k_lrsuq", "clipped_stochastic"]
    ],
)
def test_no_mutation_goes_unnoticed(name):
    """8,000 each. The check lets one in 4e9 pass: a false alarm has probability 8e-6."""
    mechanism = compiled(name)
    data = wire.pack(encoded(name, SHORT), mechanism, KEYS.shared, KNOBS)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(8000):
        changed = mutated(data, random)
        if changed != data:
            with pytest.raises(WireError):
                wire.unpack(changed, mechanism, KEYS.shared, KNOBS, SHORT)


@pytest.mark.parametrize(
    "name",
    [
        programs.param(name)
        for name in ["lrsuq_gaussian_z1", "lrsuq_gaussian_e8", "top_k_lrsuq", "clipped_stochastic"]
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_forger_who_fits_the_check_does_no_harm(name, monkeypatch):
    """1,000 each: an error or some message of the right shape, never a crash, a hang or more memory."""
    mechanism = compiled(name)
    message = encoded(name, SHORT)
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS)
    end = header.parse(data)[1]
    random = np.random.default_rng(7)

    def forged_read(changed, kind, length, expectation):
        found, start = header.parse(changed)
        return found, changed[start:]  # as if the check fitted

    monkeypatch.setattr(header, "read", forged_read)
    survived = 0
    for _ in range(1000):
        changed = data[:2] + bytes([data[2] | random.integers(4)]) + data[3:end] + mutated(data[end:], random)
        try:
            back = wire.unpack(changed, mechanism, KEYS.shared, KNOBS, SHORT)
        except WireError:
            continue
        survived += 1
        assert back.symbols.shape == message.symbols.shape
    assert survived  # otherwise nothing but the length was tested


@pytest.mark.parametrize(("target", "lattice"), [("laplace", "E8"), ("gaussian", "D4")])
def test_no_bytes_are_not_read_as_thousands_of_decisions(target, lattice, monkeypatch):
    """E8 accepts one of 157 proposals of a Laplace layer: 5 bytes took the reader 20 seconds."""
    mechanism = mechanisms.lrsuq(target, lattice)
    message = jax.jit(mechanism.encode, compiler_options=programs.FAST)(
        KEYS, np.zeros(LONG, np.float32), KNOBS
    )
    data = wire.pack(message, mechanism, KEYS.shared, KNOBS)
    assert (wire.unpack(data, mechanism, KEYS.shared, KNOBS, LONG).symbols == message.symbols).all()
    front, _ = header.parse(data)
    monkeypatch.setattr(header, "read", lambda *_: (front, b""))
    calls, read = [], coder.Reader._read
    monkeypatch.setattr(coder.Reader, "_read", lambda self, *model: calls.append(0) or read(self, *model))
    with pytest.raises(WireError, match="says more than so few bytes can"):
        wire.unpack(data, mechanism, KEYS.shared, KNOBS, LONG)
    assert len(calls) < most_tries(LATTICES[lattice], target) / 3


def in_another_process(script, given, **environment):
    """What the script writes to its output of what it reads from its input, both pickled."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        input=pickle.dumps(given),
        capture_output=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


@pytest.mark.slow
def test_another_machine_reads_the_bytes():
    """Another process: other XLA flags, another number of devices, other vector instructions in numpy."""
    names = [n for n in NAMES if n.startswith(("lrsuq", "sdq", "top_k", "masked"))]
    sent = {}
    for name in names:
        message = encoded(name, LONG, 0.2)
        sent[name] = wire.pack(message, compiled(name), KEYS.shared, KNOBS)
    script = """
import pickle, sys, jax, numpy as np
from cepam_jax import mechanisms, wire
sent, knobs, length = pickle.load(sys.stdin.buffer)
knobs, found = mechanisms.Knobs(*knobs), {}
for name, data in sent.items():
    message = wire.unpack(data, mechanisms.make(name), jax.random.key(1), knobs, length)
    found[name] = (message.symbols, message.index)
pickle.dump(found, sys.stdout.buffer)
"""
    found = in_another_process(
        script,
        (sent, tuple(KNOBS), LONG),
        XLA_FLAGS="--xla_cpu_enable_fast_math=true --xla_force_host_platform_device_count=3",
        OMP_NUM_THREADS="1",
        NPY_DISABLE_CPU_FEATURES="X86_V4 X86_V3 AVX512F AVX2 FMA3",
        JAX_ENABLE_X64="1",
    )
    for name, (symbols, index) in found.items():
        message = encoded(name, LONG, 0.2)
        assert_same(message, Message(symbols, index, message.side, LONG), sent_of(compiled(name), message))


def test_tables_are_those_of_every_machine():
    """scipy computes the radius tables; another version must round them to the same f32."""
    found = {}
    for target in latents.TARGETS:
        for n in (1, 2, 3, 4, 8):
            table = latents.radius_table(target, n)
            found[target, n] = zlib.crc32(table.middle.tobytes() + table.slope.tobytes())
    assert found == RADIUS_TABLES


RADIUS_TABLES = {
    ("gaussian", 1): 3558816629,
    ("gaussian", 2): 1987821037,
    ("gaussian", 3): 977992561,
    ("gaussian", 4): 573687142,
    ("gaussian", 8): 90309696,
    ("laplace", 1): 3246175420,
    ("laplace", 2): 4058012544,
    ("laplace", 3): 3741202100,
    ("laplace", 4): 2227756911,
    ("laplace", 8): 2963361727,
}


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["auto", "mixture", "laplace", "gaussian"])
@pytest.mark.parametrize("lattice", ["Z1", "D4"])
def test_zeros_cost_next_to_nothing(lattice, coding):
    """A tensor that did not change, such as the weights of dead pixels: in bytes and in `bits`."""
    mechanism = mechanisms.lrsuq("gaussian", lattice, coding=coding)
    zeros = np.zeros(LONG, np.float32)
    message = jax.jit(mechanism.encode)(KEYS, zeros, KNOBS)
    assert 8 * len(wire.pack(message, mechanism, KEYS.shared, KNOBS)) < 500
    assert float(jax.jit(mechanism.bits)(KEYS.shared, message, KNOBS)) < 500


# One of each factory, every kind of lattice.
DOUBLE = ["binary", "clipped_kl", "clipped_percentile", "clipped_stochastic", "identity", "jopeq_laplace_z2"]
DOUBLE += ["lrsuq_gaussian_d4", "lrsuq_gaussian_z1", "masked_lrsuq", "noise_gaussian", "noise_laplace_sdq"]
DOUBLE += ["qsgd", "rounding", "sdq_d4_bits", "sketched", "split_z1", "top_k"]


@pytest.mark.slow
def test_another_process_decodes_alike_in_double_precision():
    """Law 1: given are the message's arrays, the shared key and the knobs, nothing else.

    JAX_ENABLE_X64=1 makes float64 the default there: not one decoded float may know, and not one byte of
    what is encoded anew.
    """
    script = """
import pickle, sys, jax, numpy as np
from cepam_jax import mechanisms, wire
given, names, knobs, x = pickle.load(sys.stdin.buffer)
keys, knobs = mechanisms.Keys(jax.random.key(1), jax.random.key(2)), mechanisms.Knobs(*knobs)
found = {}
for name, message in given.items():
    mechanism = mechanisms.make(name)
    decoded = jax.jit(mechanism.decode)(keys.shared, message, knobs)
    assert decoded.dtype == np.float32, name
    found[name] = [bytes(memoryview(decoded))]
    if name in names:
        message = jax.jit(mechanism.encode)(keys, x, knobs)
        bits = jax.jit(mechanism.bits)(keys.shared, message, knobs)
        assert bits.dtype == np.float32, name
        found[name] += [wire.pack(message, mechanism, keys.shared, knobs), float(bits)]
assert jax.numpy.ones(1).dtype == "float64"
pickle.dump(found, sys.stdout.buffer)
"""
    x = (0.2 * np.random.default_rng(0).normal(size=SHORT)).astype(np.float32)
    here = {name: jax.tree.map(np.asarray, programs.round_trip(name)(KEYS, x, KNOBS)) for name in NAMES}
    given = {name: message for name, (message, _, _) in here.items()}, DOUBLE, tuple(KNOBS), x
    flags = xla_flags(programs.FAST)  # as of `round_trip`
    found = in_another_process(script, given, JAX_ENABLE_X64="1", XLA_FLAGS=flags)
    for name, (decoded, *rest) in found.items():
        message, mine, bits = here[name]
        assert decoded == mine.tobytes(), name
        if rest:
            assert rest[0] == wire.pack(message, compiled(name), KEYS.shared, KNOBS), name
            assert rest[1] == pytest.approx(float(bits), rel=1e-6), name
    assert set(found) == set(NAMES) and all(len(found[name]) == 3 for name in DOUBLE)
