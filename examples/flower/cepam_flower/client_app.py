"""The client of this app."""

from cepam_jax.deploy.flower_client import app

__all__ = ["app"]
