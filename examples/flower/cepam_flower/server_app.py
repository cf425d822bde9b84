"""The server of this app."""

from cepam_jax.deploy.flower_server import app

__all__ = ["app"]
