"""From settings to a finished work directory. Start with `training`."""

from cepam_jax.extras import need

need("cepam_jax.run", "train")
