"""Old runs against new: short runs, recorded once and compared after every change of the code.

  python -m experiments.recorded --workdir=/tmp/recorded
  python -m experiments.recorded --workdir=/tmp/recorded --data=digits,mnist,cifar10 --data_dir=...

Recorded are the lines of metrics.jsonl and a digest of the last checkpoint's parameters. On one machine with
the same versions they agree to the bit where the compiled program is the same; elsewhere to the last figures.
"""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from absl import flags

from cepam_jax.errors import require
from cepam_jax.run import training
from cepam_jax.run.checkpoints import Checkpoints
from configs import cifar10, digits, mnist
from experiments import cli
from experiments.tables import markdown

RECORD = Path(__file__).with_name("recorded.json")
FAMILIES = {"digits": digits, "mnist": mnist, "cifar10": cifar10}
SHORT = {"rounds": 6, "eval_every": 3}
# Name of the run -> variant of digits, and what else it changes.
DIGITS = {
    "fedavg": ("fedavg", {}),
    "cepam_gaussian": ("cepam_gaussian", {}),
    "cepam_laplace": ("cepam_laplace", {}),
    "D4, bytes": ("cepam_gaussian", {"mechanism.lattice": "D4", "wire": True}),
    "split, 4 of 10": ("split", {"clients_per_round": 4}),
    "gamma grows": ("cepam_gaussian", {"schedule.knob": "gamma", "schedule.end": 3.0}),
    "gamma per client": (
        "cepam_gaussian",
        {"mechanism.per_client.gamma": tuple(50.0 + 10 * k for k in range(10))},
    ),
    "public scales": ("cepam_gaussian", {"mechanism.scales": "public"}),
    "sdq": ("sdq", {}),
    "noise_gaussian_sdq": ("noise_gaussian_sdq", {}),
    "jopeq": ("jopeq", {}),
    "clipped, inverse error": ("clipped", {"aggregator": "inverse_error"}),
    "qsgd by examples": (
        "qsgd",
        {"aggregator": "examples", "partition.kind": "quantity", "server.optimizer": "adam"},
    ),
    "sketched": ("sketched", {}),
    "top_k": ("top_k", {}),
    "weights": ("cepam_gaussian", {"mechanism.quantize": "weights", "mechanism.clip": "none"}),
    "fednova": (
        "cepam_gaussian",
        {"local.normalize": True, "local.steps_by_size": True, "partition.kind": "quantity"},
    ),
    "examples clipped": (
        "noise_gaussian",
        {
            "local.update_kind": "gradient",
            "local.sampling": "shuffle",
            "local.example_clip": 1.0,
            "mechanism.clip": "none",
            "partition.kind": "dirichlet",
        },
    ),
    "target epsilon": (
        "cepam_gaussian",
        {"privacy.target_epsilon": 20.0, "privacy.calibrate": False, "mechanism.gamma": 3.0},
    ),
}
OTHERS = {
    "mnist": {
        "mnist, cepam_gaussian": ("cepam_gaussian", {}),
        "mnist, cnn2, bytes": ("cepam_gaussian", {"model": "cnn2", "wire": True, "rounds": 2}),
    },
    "cifar10": {
        "cifar10, cepam_gaussian": ("cepam_gaussian", {"num_clients": 3, "rounds": 2, "eval_every": 1}),
    },
}
TIMES = ("seconds", "seconds_per_round")


def configurations(data: list[str], data_dir: str = "") -> dict:
    """Name of the run -> its configuration, for the data sets asked for."""
    configs = {}
    for family in data:
        for name, (variant, changes) in (DIGITS if family == "digits" else OTHERS[family]).items():
            config = FAMILIES[family].get_config(variant)
            config.update_from_flattened_dict({**SHORT, "data.dir": data_dir, **changes})
            configs[name] = config
    return configs


def describe(lines: list[dict], params) -> dict:
    """What is kept of a run: its lines without times, and its parameters as a digest and a norm."""
    vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    return {
        "lines": [{name: v for name, v in line.items() if name not in TIMES} for line in lines],
        "parameters": hashlib.sha256(np.ascontiguousarray(vector).tobytes()).hexdigest()[:16],
        "norm": float(np.linalg.norm(vector.astype(np.float64))),
    }


def runs(configs: dict, workdir: Path, progress: bool) -> dict:
    """Name of the run -> `describe` of it."""
    results = {}
    for number, (name, config) in enumerate(configs.items()):
        folder = workdir / f"{number:02d}"
        lines = training.train(config, folder, progress, name)
        store = Checkpoints(folder / "checkpoints")
        results[name] = describe(lines, _parameters(store))
    return results


def _parameters(store: Checkpoints):
    """The parameters of the newest checkpoint, leaf by leaf, whatever else the state holds."""
    import orbax.checkpoint as ocp  # noqa: PLC0415  the module before it has configured it

    folder = store._directory / str(store.rounds()[-1]) / "default"
    return ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(folder)["params"]


def difference(old, new) -> float:
    """Largest relative difference of two numbers, or of two trees of them; infinite where one is missing."""
    if isinstance(old, dict) and isinstance(new, dict):
        return max((difference(old[name], new.get(name)) for name in old), default=0.0)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return max(map(difference, old, new), default=0.0)
    if isinstance(old, float) and isinstance(new, (float, int)):
        return abs(old - new) / max(abs(old), 1e-12)
    return 0.0 if old == new else float("inf")


def row(name: str, old: dict, new: dict) -> list[str]:
    """One line of the table: accuracy and bits, old and new, and how far they are from each other."""
    last, now = old["lines"][-1], new["lines"][-1]
    same = (
        "to the bit"
        if old["parameters"] == new["parameters"]
        else f"{difference(old['norm'], new['norm']):.1e}"
    )
    lines = difference(old["lines"], new["lines"])
    return [
        name,
        f"{last['accuracy']:.4f}",
        f"{now['accuracy']:.4f}",
        f"{last['uplink_bits']:.0f}",
        f"{now['uplink_bits']:.0f}",
        f"{now.get('uplink_bytes', 0):.0f}" if "uplink_bytes" in now else "",
        same,
        "to the bit" if lines == 0 else f"{lines:.1e}",
    ]


def table(old: dict, new: dict) -> str:
    """All runs that were recorded and carried out again."""
    header = ["run", "accuracy, old", "new", "bits, old", "new", "bytes", "parameters", "all figures"]
    return markdown(header, [row(name, old[name], new[name]) for name in new if name in old])


def define_flags():
    flags.DEFINE_string("workdir", None, "Directory of the runs.", required=True)
    flags.DEFINE_list("data", ["digits"], "Which data sets: digits, mnist, cifar10.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps the data.")
    flags.DEFINE_bool("write", False, "Record the runs instead of comparing them.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def main():
    f = flags.FLAGS
    for name in f.data:
        require(name in FAMILIES, "--data", name, "one of digits, mnist, cifar10")
    new = runs(configurations(f.data, f.data_dir), Path(f.workdir), f.progress)
    if f.write:
        RECORD.write_text(json.dumps(new, indent=1) + "\n")
        print(f"recorded {len(new)} runs in {RECORD}")
        return
    print(table(json.loads(RECORD.read_text()), new))


if __name__ == "__main__":
    cli.run(main, define_flags)
