"""What was compiled once is not compiled again: counted by JAX itself."""

import subprocess
import sys

import jax
import pytest

from cepam_jax.run import training
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

_EVENT = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """Names of events since the test began, one for each program that XLA was asked for."""
    seen, listening = [], [True]

    def note(event, *_, **__):
        if listening[0] and event == _EVENT:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    listening[0] = False  # there is no public way to unregister


def config_of(**changes):
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict({"rounds": 6, "eval_every": 2, **changes})
    return config


def test_rounds_evaluations_and_other_runs_compile_nothing(tmp_path, compilations):
    training.train(config_of(rounds=2, num_clients=7), tmp_path / "first", progress=False)
    assert compilations, "the listener hears nothing"
    compilations.clear()
    # More blocks, a last one that is shorter, and runs that differ in arrays alone.
    training.train(config_of(rounds=9, num_clients=7), tmp_path / "longer", progress=False)
    changed = {"mechanism.gamma": 3.0, "mechanism.clip_norm": 2.0, "seeds.training": 5, "seeds.partition": 2}
    training.train(config_of(num_clients=7, **changed), tmp_path / "other", progress=False)
    assert not compilations


def test_a_second_sweep_compiles_nothing(tmp_path, compilations):
    for offset in (0.0, 1.0):
        # Six clients, in no other test: what another one compiled would not be compiled here.
        gammas = [gamma + offset for gamma in (10.0, 30.0, 100.0)]
        configs = [config_of(**{"mechanism.gamma": gamma, "num_clients": 6}) for gamma in gammas]
        compilations.clear()
        places = [tmp_path / f"{offset}_{n}" for n in range(3)]
        training.train_many(configs, places, progress=False)
        assert bool(compilations) == (offset == 0)


def test_a_changed_architecture_does_compile(tmp_path, compilations):
    training.train(config_of(rounds=2), tmp_path / "a", progress=False)
    compilations.clear()
    training.train(config_of(rounds=2, model="linear"), tmp_path / "b", progress=False)
    assert compilations


def test_the_next_process_finds_what_was_compiled(tmp_path, root):
    """In a cache folder of the user, unless JAX was told of another."""
    code = "import jax, cepam_jax.run.runtime as r; r.start(); print(jax.config.jax_compilation_cache_dir)"
    environment = {"PATH": "/usr/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def start(**more):
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env=environment | more,
            capture_output=True,
            text=True,
            check=True,
        )
        return found.stdout.strip()

    assert start().startswith(str(tmp_path / ".cache/cepam_jax"))
    assert start(XDG_CACHE_HOME=str(tmp_path / "x")).startswith(str(tmp_path / "x/cepam_jax"))
    assert start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == str(tmp_path / "own")
    (tmp_path / "file").write_text("")
    assert start(XDG_CACHE_HOME=str(tmp_path / "file")) == "None"  # cannot be written to: no cache, no error
    train = [sys.executable, "-m", "experiments.train", "--config=configs/digits.py", "--config.rounds=5"]
    subprocess.run(
        [*train, f"--workdir={tmp_path / 'run'}", "--noprogress"],
        cwd=root,
        env=environment,
        check=True,
        capture_output=True,
    )
    assert list((tmp_path / ".cache/cepam_jax").rglob("jit_block*"))
