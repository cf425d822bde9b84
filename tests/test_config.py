import fractions
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import ml_collections
import numpy as np
import pytest

from cepam_jax import mechanisms, models
from cepam_jax.data import sources
from cepam_jax.errors import ConfigError, MissingExtraError
from cepam_jax.extras import EXTRAS, need
from cepam_jax.mechanisms import sigma_of_gamma
from cepam_jax.run.config import FIELDS, flat, plain, validate
from configs import cifar10, common, digits, fashion_mnist, mnist

FAMILIES = {"digits": digits, "mnist": mnist, "fashion_mnist": fashion_mnist, "cifar10": cifar10}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", common.VARIANTS)
def test_every_variant_is_valid_and_has_every_field(family, variant):
    config = FAMILIES[family].get_config(variant)
    validate(config)
    assert flat(config).keys() == FIELDS.keys()
    assert config.data.name == family
    assert (config.mechanism.name == "identity") == (variant in ("fedavg", "top_k"))


def test_unknown_variant():
    with pytest.raises(ValueError, match="variant is 'cepam'; it must be one of fedavg"):
        mnist.get_config("cepam")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "mechanism.lattice",
            "Z0",
            "config.mechanism.lattice is 'Z0'; it must be one of 'A2', 'D4'",
        ),
        ("mechanism.gamma", 0.0, "config.mechanism.gamma is 0.0; it must be a positive number"),
        ("mechanism.gamma", -1.0, "config.mechanism.gamma is -1.0"),
        ("mechanism.gamma", float("nan"), "config.mechanism.gamma is nan"),
        (
            "mechanism.gamma",
            1e50,
            "config.mechanism.gamma is 1e+50; it must be a positive number (between 1.2e-38",
        ),
        ("mechanism.clip_norm", 1e-40, "config.mechanism.clip_norm is 1e-40"),
        (
            "local.proximal",
            1e39,
            "config.local.proximal is 1e+39; it must be a number of at least 0 (0, or betw",
        ),
        (
            "mechanism.per_client.gamma",
            (np.float32("nan"),) * 30,
            "config.mechanism.per_client.gamma is (nan, ",
        ),
        ("mechanism.per_client.gamma", (1.0, 2.0), "one number for each of config.num_clients = 30"),
        ("mechanism.per_client.gamma", (0.0,) * 30, "config.mechanism.per_client.gamma is"),
        ("mechanism.per_client.bits", (9,) * 30, "config.mechanism.per_client.bits is"),
        (
            "mechanism.bits",
            0,
            "config.mechanism.bits is 0; it must be an integer of at least 1",
        ),
        ("mechanism.fraction", 1.5, "config.mechanism.fraction is 1.5"),
        ("schedule.knob", "sigma", "config.schedule.knob is 'sigma'; it must be one of 'bits'"),
        ("mechanism.clip", "l3", "config.mechanism.clip is 'l3'; it must be one of 'l1', 'l2', 'none'"),
        ("clients_per_round", 31, "config.clients_per_round is 31; it must be at most config.num_clients"),
        ("num_clients", 0, "config.num_clients is 0; it must be an integer of at least 1"),
        ("rounds", -5, "config.rounds is -5"),
        ("local.momentum", 1.0, "config.local.momentum is 1.0"),
        ("local.learning_rate", float("inf"), "config.local.learning_rate is inf"),
        ("model", "resnet", "config.model is 'resnet'; it must be one of 'cnn2'"),
        ("partition.alpha", 0.0, "config.partition.alpha is 0.0"),
        ("seeds.model", -1, "config.seeds.model is -1"),
    ],
)
def test_impossible_values_name_field_value_and_what_is_allowed(field, value, message):
    config = mnist.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(config)


def test_impossible_combinations():
    for changes, message in (
        ({"mechanism.rotate": True, "mechanism.sparsify": "top_k"}, "config.mechanism.sparsify is 'top_k'"),
        ({"mechanism.rotate": True, "mechanism.name": "clipped"}, "config.mechanism.granularity is 'tensor'"),
        (
            {"task": "next_character", "local.augment": "crop_flip"},
            "config.local.augment is 'crop_flip'; it must be 'none' where config.task is 'next_character'",
        ),
        ({"model": "cnn2", "local.dropout": 0.5}, "config.local.dropout is 0.5; it must be 0 where"),
        ({"mechanism.quantize": "weights"}, "config.mechanism.clip is 'l2'; it must be 'none' where"),
        ({"local.update_kind": "gradient", "local.normalize": True}, "config.local.normalize is True"),
        (
            {"mechanism.name": "rotated"},
            "config.mechanism.lattice is 'Z1'; it must be one of 'A2', 'D4', 'E8'",
        ),
        ({"mechanism.name": "split", "mechanism.quantizer": "rotated"}, "config.mechanism.lattice is 'Z1'"),
        (
            {"mechanism.name": "rotated", "mechanism.lattice": "E8", "mechanism.target": "laplace"},
            "config.mechanism.target is 'laplace'; it must be 'gaussian' where",
        ),
    ):
        config = mnist.get_config()
        config.update_from_flattened_dict(changes)
        with pytest.raises(ConfigError, match=message):
            validate(config)
    config = mnist.get_config()
    config.server.optimizer, config.server.momentum = "adam", 0.9
    with pytest.raises(ConfigError, match="config.server.momentum is 0.9"):
        validate(config)
    config = mnist.get_config()
    with config.unlocked():
        config.mechanism.gama = 3
    with pytest.raises(ConfigError, match="config.mechanism.gama is not a field"):
        validate(config)
    del config.mechanism.gama
    with config.unlocked():
        del config.model
    with pytest.raises(ConfigError, match="config.model is missing"):
        validate(config)


def test_rotated_cells_are_built_alone_and_in_split():
    for changes, name, share in (
        ({"name": "rotated", "lattice": "E8"}, "rotated-E8", None),
        ({"name": "split", "quantizer": "rotated", "lattice": "D4"}, "split-0.5-rotated-D4", 0.5),
        ({"name": "split", "lattice": "D4"}, "split-0.5-D4", 0.5),
    ):
        config = mnist.get_config()
        config.update_from_flattened_dict({f"mechanism.{field}": value for field, value in changes.items()})
        validate(config)
        built = mechanisms.build(config.mechanism, ((3, 4), (5,)))
        assert name in built.about.name and built.about.law == "gaussian"
        assert (built.about.server is None) == (share is None)


def test_what_is_registered_later_may_be_chosen(monkeypatch):
    """By name, also after this module was imported; and what is not there is refused with all names."""
    for registry, field in ((sources.SOURCES, "data.name"), (models.MODELS, "model")):
        config = mnist.get_config()
        config.update_from_flattened_dict({field: "registered_later"})
        with pytest.raises(ConfigError, match=f"config.{field} is 'registered_later'; it must be one of '"):
            validate(config)
        monkeypatch.setitem(registry, "registered_later", None)
        validate(config)
        config.update_from_flattened_dict({field: "another"})
        with pytest.raises(ConfigError, match="'registered_later'"):
            validate(config)


def numpy_config():
    """A valid configuration full of NumPy's numbers."""
    config = ml_collections.ConfigDict(digits.get_config().to_dict(), type_safe=False)
    config.mechanism.gamma, config.rounds, config.wire = np.float32(50), np.int64(3), np.bool_(True)
    config.local.learning_rate = fractions.Fraction(1, 4)
    config.mechanism.per_client.gamma = np.linspace(1, 10, 10, dtype=np.float32)
    config.mechanism.per_client.bits = tuple(np.arange(10) % 8 + 1)
    return config


def test_numbers_of_numpy_and_frozen_configurations_become_plain():
    config = plain(numpy_config())
    validate(numpy_config())
    fields = json.loads(config.to_json())
    assert fields["mechanism"]["gamma"] == 50 and fields["rounds"] == 3 and fields["wire"] is True
    assert fields["mechanism"]["per_client"]["gamma"] == list(range(1, 11))
    assert fields["local"]["learning_rate"] == 0.25
    allowed = (bool, int, float, str, tuple)
    assert {type(value) for value in flat(config).values()} <= set(allowed)
    frozen = ml_collections.FrozenConfigDict(digits.get_config())
    validate(frozen)
    assert plain(frozen).to_json() == plain(digits.get_config()).to_json()
    assert type(plain(frozen)) is ml_collections.ConfigDict
    validate(digits.get_config().to_dict())
    with pytest.raises(ConfigError, match="config is 3; it must be a ConfigDict"):
        validate(3)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"mechanism.fraction": 1e-300}, "mechanism.fraction is 1e-300; it must be a number above 0"),
        (
            {"mechanism.share": 1e-70},
            "mechanism.share is 1e-70; it must be a number between 1e-6",
        ),
        ({"mechanism.share": 1 - 1e-9}, "it must be a number between 1e-6"),
        ({"mechanism.step": 3e38}, "mechanism.step is 3e[+]38"),
        ({"mechanism.gamma": fractions.Fraction(10**400)}, "mechanism.gamma is inf"),
    ],
)
def test_numbers_that_the_device_cannot_hold(fields, text):
    config = digits.get_config()
    config.update_from_flattened_dict({name: value for name, value in fields.items() if "gamma" not in name})
    given = config.to_dict()
    given["mechanism"] |= {name.split(".")[1]: value for name, value in fields.items()}
    with pytest.raises(ConfigError, match=text):
        validate(given)


def test_what_is_no_configuration():
    given = digits.get_config().to_dict()
    with pytest.raises(ConfigError, match="name of a field is 3"):
        validate(given | {3: 4})
    with pytest.raises(ConfigError, match="is 'mechanism.gamma'; it must be a word without dots"):
        validate(given | {"mechanism.gamma": 5.0})
    with pytest.raises(ConfigError, match="config.mechanism is 5; it must be a section"):
        validate(given | {"mechanism": 5})
    with pytest.raises(ConfigError, match="config.roundz is not a field"):
        validate(given | {"roundz": 5, "zz": 6})
    given["mechanism"]["gamma"] = np.longdouble(50)
    json.dumps(plain(given).to_dict())


def test_gamma_is_clip_norm_over_noise_scale():
    assert sigma_of_gamma("gaussian", 50.0, 2.0) == pytest.approx(0.04)
    assert sigma_of_gamma("laplace", 50.0, 2.0) == pytest.approx(0.04 * 2**0.5)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.mechanism.gama=4", ["no such configuration field", "gama", "gamma"]),
        ("--config.mechanism.gamma=much", ["gamma", "much"]),
        ("--config.rounds=2.5", ["rounds", "2.5"]),
        ("--config.mechanism.gamma=-4", ["config.mechanism.gamma is -4.0", "positive"]),
        (
            "--config.clients_per_round=11",
            ["config.clients_per_round is 11", "at most config.num_clients = 10"],
        ),
    ],
)
def test_the_command_line_refuses_before_anything_runs(flag, words, tmp_path, called):
    given = ["--config=configs/digits.py", flag, f"--workdir={tmp_path / 'run'}"]
    done = called("experiments.train", *given)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "run").exists()


def test_package_and_requirements_ask_for_the_same(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = pathlib.Path(root / "requirements.txt").read_text().splitlines()
    extras = project["optional-dependencies"]
    assert extras.pop("all") == ["cepam_jax[train,data,audit,tensorboard,experiments]"]
    for extra in ("export", "deploy"):
        own = pathlib.Path(root / f"requirements-{extra}.txt").read_text().splitlines()
        assert [line for line in own if not line.startswith("#")] == extras.pop(extra)
    wanted = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    assert sorted(line for line in lines if not line.startswith("#")) == sorted(wanted)


def test_extras_bring_the_modules_that_messages_name(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    homes = importlib.metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        asked = {re.split("[>=]", line)[0] for line in project["optional-dependencies"][extra]}
        for module in modules:
            if extra == "deploy" and module not in homes:
                continue  # not in requirements.txt
            assert asked & {name.replace("_", "-") for name in homes[module]}, module
    need("this test", "train")
    with pytest.raises(MissingExtraError, match="this test needs no_such_module, which is not installed"):
        need("this test", "train", "flax", "no_such_module")


def test_the_quantizer_alone_needs_no_library_for_training():
    """Its core dependencies are what it imports; the names of the package are there before they are used."""
    code = (
        "import sys, cepam_jax, cepam_jax.mechanisms, cepam_jax.wire, cepam_jax.theory.rate\n"
        "assert {'Federation', 'clients', 'train', 'tasks'} <= set(dir(cepam_jax))\n"
        "heavy = {'flax', 'optax', 'ml_collections', 'orbax', 'dp_accounting', 'matplotlib', 'tqdm'}\n"
        "heavy |= {'scipy.stats'}\n"  # takes as long as JAX
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "cepam_jax.train, cepam_jax.defaults\n"
        "try:\n    cepam_jax.trian\n"
        "except AttributeError as error:\n    assert 'it has Federation, clients' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
