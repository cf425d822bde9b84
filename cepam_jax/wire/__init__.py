"""Messages as real bytes, close to the information limit. See `format` for the layout."""

from cepam_jax.errors import WireError
from cepam_jax.wire.format import describe, pack, unpack

__all__ = ["WireError", "describe", "pack", "unpack"]
