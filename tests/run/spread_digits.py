"""Trains a few variants with a number of devices; `test_devices` compares what comes out.

python tests/run/spread_digits.py <cpu devices> <workdir>
"""

import sys
from pathlib import Path

from cepam_jax.run import runtime, training
from configs import digits

CASES = {
    "cepam": ("cepam_gaussian", {"clients_per_chunk": 2}),
    "one_each": ("cepam_gaussian", {"num_clients": 8}),
    "E8": ("cepam_gaussian", {"mechanism.lattice": "E8", "clients_per_round": 5}),
    "memory": ("top_k", {"wire": True}),
    "weights": ("clipped", {"aggregator": "inverse_error", "partition.kind": "dirichlet"}),
}


def config_of(case):
    variant, changes = CASES[case]
    config = digits.get_config(variant)
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
