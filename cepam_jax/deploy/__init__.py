"""A federation between machines: its agreement, keys, messages and state; a transport carries its bytes.

`agreement` is what all parties signed up to, `keys` what two of them know, `envelope` one message,
`joining` how a client comes in, `step` what is compiled, `client` and `server` the two ends, `store` what
survives a kill, and `spent` what was promised so far. `serving` and `dialling` carry messages over TCP,
`flower_server` and `flower_client` over Flower.
"""

from cepam_jax.extras import need

need("cepam_jax.deploy", "train")
need("cepam_jax.deploy", "deploy", "cryptography")
