"""What client and server alone know: one secret from a key agreement, and what is derived from it.

  secret = X25519(own private key, the other's public key)
  master = HKDF(secret, salt = run's nonce | client's nonce, info = digest of the agreement | client)
  up, down = keys of the messages' authentication; shared words of round r = HKDF(master, info = r)

Diffie, Hellman: New Directions in Cryptography, 1976; Langley, Hamburg, Turner: Elliptic Curves for Security,
RFC 7748; Krawczyk, Eronen: HMAC-based Extract-and-Expand Key Derivation Function (HKDF), RFC 5869. The run's
nonce is the server's and the client's nonce is the client's, both from the operating system, so that neither
an old run nor a client whose disk was lost comes to keys that were used before.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cepam_jax.errors import ConfigError

NONCE = 16  # bytes
_KEY = 32
_WORDS = 8  # bytes of a key of JAX's generator


class Derived(NamedTuple):
    """What is derived for one client in one run; nothing of it is sent or stored.

    Attributes:
      master: 32 bytes, from which the others follow.
      up, down: 32 bytes each, of the messages to the server and from it.
    """

    master: bytes
    up: bytes
    down: bytes

    def __repr__(self) -> str:
        return "Derived(...)"  # a traceback or a log that prints it shows nothing


def write_private(path: Path) -> str:
    """Makes a private key that its owner alone can read, and returns the public one, 64 hexadecimal digits.

    Raises:
      FileExistsError: there is a file already; a key is never overwritten.
    """
    key = X25519PrivateKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes_raw())
        file.flush()
        os.fsync(file.fileno())
    return public_of(key)


def read_private(path: Path) -> X25519PrivateKey:
    """The private key of a file.

    Raises:
      ConfigError: it is none, or others than its owner may read it.
    """
    path = Path(path)
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others; it must be its owner's alone: chmod 600 {path}")
    data = path.read_bytes()
    if len(data) != _KEY:
        raise ConfigError(f"{path} holds {len(data)} bytes; a private key has {_KEY}")
    return X25519PrivateKey.from_private_bytes(data)


def public_of(key: X25519PrivateKey) -> str:
    """The public key that belongs to a private one, 64 hexadecimal digits."""
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return key.public_key().public_bytes(*raw).hex()


def public(text: str) -> X25519PublicKey:
    """A public key from its 64 hexadecimal digits; ConfigError if it is none."""
    try:
        return X25519PublicKey.from_public_bytes(bytes.fromhex(text))
    except (ValueError, TypeError) as error:
        # Not the whole text, which may be somebody's private key.
        raise ConfigError(f"{text[:4]!r}... is no public key; it must be 64 hexadecimal digits") from error


def read_public(path: Path) -> str:
    """The text of a file with a public key; ConfigError if it is none."""
    try:
        text = Path(path).read_text().strip()
        public(text)
    except (UnicodeDecodeError, ConfigError):  # neither quotes what may be a private key
        raise ConfigError(
            f"{path} is no public key; give the file that ends in .pub, with 64 hexadecimal digits"
        ) from None
    return text


def normal(text: str) -> str:
    """A public key as it is written here: small letters, and without the bit that X25519 does not read.

    Raises:
      ConfigError: it is none.
    """
    public(text)
    raw = bytearray.fromhex(text)
    raw[-1] &= 0x7F
    return raw.hex()


def agree(own: X25519PrivateKey, other: str) -> bytes:
    """32 bytes that both owners of the keys come to, and nobody else.

    Raises:
      ConfigError: the other's key is none, or one with which everybody would come to the same.
    """
    try:
        return own.exchange(public(other))
    except (ValueError, InvalidKey) as error:
        raise ConfigError(f"the public key {other[:8]}... leads to no secret") from error


def expand(secret: bytes, salt: bytes, info: bytes, length: int = _KEY) -> bytes:
    """HKDF with SHA-256, `length` bytes."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=b"cepam_jax deploy " + info).derive(
        secret
    )


def derive(secret: bytes, run: bytes, nonce: bytes, agreement: bytes, client: int) -> Derived:
    """The keys of one client in one run.

    Args:
      secret: of `agree`.
      run, nonce: 16 bytes each, of the run and of the client.
      agreement: 32 bytes, digest of what was agreed to.
      client: its number.
    """
    master = expand(secret, run + nonce, b"master" + agreement + client.to_bytes(4, "little"))
    return Derived(master, expand(master, b"", b"up"), expand(master, b"", b"down"))


def joining(secret: bytes, run: bytes, agreement: bytes, client: int) -> bytes:
    """32 bytes by which a client's nonce is authenticated, before there are keys that follow from it."""
    return expand(secret, run, b"join" + agreement + client.to_bytes(4, "little"))


def shared_of_round(master: bytes, number: int, client: int) -> jax.Array:
    """The key of a round's shared words, 64 bits; the master is that client's."""
    del client
    return as_key(expand(master, b"", b"round" + number.to_bytes(4, "little"), _WORDS))


def private_keys() -> tuple[jax.Array, jax.Array]:
    """(key of batches and dropout, key of private noise) from the operating system's generator, each new."""
    data = os.urandom(2 * _WORDS)
    return as_key(data[:_WORDS]), as_key(data[_WORDS:])


def draws(own: X25519PrivateKey, run: bytes) -> jax.Array:
    """The server's key of who is drawn: it follows from its private key, so that no checkpoint holds it."""
    return as_key(expand(own.private_bytes_raw(), run, b"draws", _WORDS))


def as_key(data: bytes) -> jax.Array:
    """A key of JAX's generator from 8 bytes."""
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(data, "<u4")), impl="threefry2x32")


class Source(NamedTuple):
    """Where a client's keys come from.

    Attributes:
      shared: (master, round, client) -> key of the shared words.
      private: (round, client) -> (key of batches, key of private noise).
    """

    shared: Callable[[bytes, int, int], jax.Array]
    private: Callable[[int, int], tuple[jax.Array, jax.Array]]


def fresh() -> Source:
    """The keys of a deployment."""
    return Source(shared_of_round, lambda number, client: private_keys())
