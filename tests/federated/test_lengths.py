"""Rounds that do not count the lengths of messages: what is left of a run, and what of its program."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import cepam_jax
from cepam_jax.errors import ConfigError
from cepam_jax.federated import lengths
from cepam_jax.run import lines, training
from cepam_jax.run.checkpoints import Checkpoints
from configs import digits
from experiments.benchmarks import cost

TOLD = ("bits_per_coordinate", "uplink_bits", "uplink_bits_estimate", "messages_counted", "messages")


def config_of(bits, **changes):
    config = digits.get_config("cepam_gaussian")
    config.rounds, config.eval_every, config.local.steps, config.num_clients = 5, 3, 2, 4
    config.metrics.bits = bits
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Schedule -> (lines, parameters at the end) of the same run; three rounds, then two."""
    found = {}
    for bits in lengths.SCHEDULES:
        workdir = tmp_path_factory.mktemp(bits)
        told = training.train(config_of(bits), workdir, progress=False)
        saved = [path for path in sorted((workdir / "checkpoints").rglob("*")) if path.is_file()]
        assert saved
        found[bits] = told, workdir
    return found


def parameters(workdir):
    return cepam_jax.run.finished.load(workdir)
