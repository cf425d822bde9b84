"""Trains a few variants with a number of devices; `test_devices` compares what comes out.

python tests/run/spread_digits.py <cpu devices> <workdir>
"""

import sys
from pathlib import Path

import jax.numpy as jnp

from cepam_jax.federated.aggregation import AGGREGATORS, Aggregator
from cepam_jax.run import runtime, training
from configs import digits

CASES = {
    "cepam": ("cepam_gaussian", {"clients_per_chunk": 2}),
    "one_each": ("cepam_gaussian", {"num_clients": 8}),
    "E8": ("cepam_gaussian", {"mechanism.lattice": "E8", "clients_per_round": 5}),
    "memory": ("top_k", {"wire": True}),
    "median": ("cepam_gaussian", {"aggregator": "median", "clients_per_round": 9}),
    "nearest": ("cepam_gaussian", {"aggregator": "nearest", "clients_per_round": 9}),
    "precision": (
        "cepam_gaussian",
        {
            "aggregator": "precision",
            "num_clients": 9,
            "mechanism.per_client.gamma": (3.0, 10.0, *[300.0] * 7),
        },
    ),
    "clipping": (
        "cepam_gaussian",
        {
            "aggregator": "centered_clipping",
            "byzantine.before": "mixing",
            "byzantine.tolerated": 3,
            "byzantine.noise": "known",
            "byzantine.check": True,
            "byzantine.pairs": True,
            "clients_per_round": 9,
        },
    ),
    "liars": (
        "cepam_gaussian",
        {
            "aggregator": "trimmed_mean",
            "byzantine.tolerated": 3,
            "byzantine.attack": "little_is_enough",
            "byzantine.clients": 2,
            "byzantine.check": True,
            "byzantine.pairs": True,
            "clients_per_round": 9,
            "local.worker_momentum": 0.5,
        },
    ),
    "sum": (
        "cepam_gaussian",
        {
            "mechanism.name": "secure_sum",
            "mechanism.secure.survivors": 7,
            "mechanism.secure.lost": 0.1,
            "clients_per_round": 9,
        },
    ),
    "weights": ("clipped", {"aggregator": "inverse_error", "partition.kind": "dirichlet"}),
}


def nearest(state, updates, facts):
    """The update that is nearest to all others: a rule that gathers and is not coordinatewise."""
    distances = jnp.square(updates[:, None] - updates[None]).sum(-1)
    return updates[distances.sum(1).argmin()], state


AGGREGATORS.register("nearest", Aggregator(combine=nearest))


def config_of(case):
    variant, changes = CASES[case]
    config = digits.get_config(variant)
    if case != "cepam":
        config.model = "linear"  # compiles sooner
    config.update_from_flattened_dict({"rounds": 4, "eval_every": 2, **changes})
    return config


def main():
    devices, workdir = int(sys.argv[1]), Path(sys.argv[2])
    runtime.start(cpu_devices=devices)
    for case in CASES:
        training.train(config_of(case), workdir / case, progress=False)
    seeds = [digits.get_config("cepam_gaussian") for _ in range(3)]
    for number, config in enumerate(seeds):
        config.update_from_flattened_dict({"rounds": 4, "eval_every": 2, "seeds.training": number})
    training.train_many(seeds, [workdir / f"sweep{n}" for n in range(3)], progress=False)


if __name__ == "__main__":
    main()
