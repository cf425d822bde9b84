"""README.md and docs/: their commands run, cut short, their Python runs, and their links lead somewhere.

Nothing is counted: whatever command or block of Python is on a page is run. The steps of docs/extending.md
are followed in tests/test_extend.py.
"""

import re
import shlex
import subprocess
import sys
import warnings
from importlib import util

import pytest
from absl import flags
from commands import run_here
from conftest import ROOT, check_figure

import cepam_jax
from cepam_jax.data import sources
from cepam_jax.run import training
from configs import hospitals

README, EXTENDING = ROOT / "README.md", ROOT / "docs/extending.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULE = re.compile(r"-m (experiments\.[\w.]+)")


def blocks(text: str, language: str) -> list[str]:
    """The contents of a page's fenced blocks in a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.S | re.M)


def commands(text: str) -> list[str]:
    """What a page runs of experiments, from "-m" on."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    # Two with --distributed belong together: tests/run/test_devices.py runs such a pair.
    return [
        line[line.index("-m experiments.") :]
        for line in lines
        if MODULE.search(line) and "--distributed" not in line
    ]


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page.read_text())))
PYTHON = [
    pytest.param(page, block, id=f"{page.name}-{number}")
    for page in PAGES
    if page != EXTENDING
    for number, block in enumerate(blocks(page.read_text(), "python"))
]
# The first command of each is a process of its own; the others run here, which saves the imports and what is
# already compiled. The README's command; a figure, which says how it was called; one that divides the CPU
# before JAX starts.
PROCESSES = (
    "experiments.compare",
    "experiments.fault_campaign",
    "experiments.figures.error_law",
    "experiments.benchmarks.sweeps",
)
# That commands and blocks run is tested here; what they print is checked against laws elsewhere.
pytestmark = [pytest.mark.compiled_fast, pytest.mark.spread]
# Families with data and tasks of their own, which are small: their runs are only cut to a round.
OWN_DATA = ("configs/hospitals.py", "configs/graphs.py")
# Programs whose commands the quick tests run too: one of every kind.
QUICK = (
    *("experiments.audit", "experiments.links", "experiments.figures.bell"),
    *("experiments.benchmarks.cost", "experiments.benchmarks.wire"),
)
# Flags that make a module's commands short.
SHORT = {
    "experiments.train": ["--config.data.name=digits", "--config.model=linear"],
    "experiments.compare": ["--config.data.name=digits", "--config.model=linear", "--seeds=1"],
    "experiments.figures.lattices": ["--size=2000", "--repeats=1"],
    "experiments.figures.mean_estimation": ["--repeats=2", "--draws=20"],
    "experiments.figures.convergence": ["--smoke", "--rounds=10"],
    "experiments.figures.clipped": [
        "--config.data.name=digits",
        "--config.model=linear",
        "--seeds=1",
        "--bits=2",
    ],
    "experiments.figures.rate": ["--size=2000", "--seeds=1", "--ratios=1"],
    "experiments.figures.adaptive": [
        "--smoke",
        "--data=digits",
        "--partitions=iid",
        "--budgets=epsilon",
        "--epsilon=100",
        "--bits=4",
        "--seeds=1",
        "--lengths=2",
    ],
    "experiments.figures.cell_coder": ["--smoke"],
    "experiments.figures.byzantine": [
        "--smoke",
        "--data=digits",
        "--rules=mean",
        "--partitions=iid",
        "--seeds=1",
        "--liars=0,3",
        "--gammas=30",
        "--attacks=little_is_enough",
    ],
    "experiments.figures.collusion": [
        *("--smoke", "--data=digits", "--liars=2", "--seeds=1", "--attacks=dither_abuse"),
    ],
    "experiments.byzantine_tables": [
        "--smoke",
        "--rules=trimmed_mean",
        "--lengths=3",
        "--seeds=1",
        "--data=digits",
    ],
    "experiments.figures.secure_sums": ["--smoke"],
    "experiments.figures.trust": [
        "--smoke",
        "--data=digits",
        "--seeds=1",
        "--rounds=1",
        "--methods=CEPAM Z1,secure sum",
        "--epsilons=8",
    ],
    "experiments.figures.clipping": ["--smoke", "--rounds=2"],
    "experiments.figures.graphs": ["--smoke", "--data=motifs", "--rounds=1", "--seeds=1"],
    "experiments.hospitals": [],
    "experiments.figures.rotated": ["--smoke", "--data=digits", "--rounds=2", "--seeds=1"],
    "experiments.figures.tensors": ["--settings=hospitals", "--gammas=30"],
    "experiments.figures.modalities": ["--data=hospitals", "--seeds=1", "--rounds=2", "--gammas=30"],
    "experiments.figures.updates": ["--settings=digits mlp", "--gammas=30"],
    "experiments.figures.inversion": ["--data=digits", "--gammas=10"],
    "experiments.figures.privacy": [
        "--config.data.name=digits",
        "--config.model=linear",
        "--config.num_clients=10",
        "--seeds=1",
        "--epsilons=100",
        "--methods=cepam_gaussian",
    ],
    "experiments.figures.private": [
        *("--smoke", "--config.data.name=digits", "--seeds=1", "--epsilons=8", "--methods=CEPAM Z1"),
    ],
    "experiments.dpsgd": [
        "--config.data.name=digits",
        "--config.model=linear",
        "--config.num_clients=1437",
        "--config.clients_per_round=100",
        "--config.rounds=5",
        "--held_out=200",
    ],
    "experiments.figures.heterogeneous": [
        "--config.data.name=digits",
        "--config.model=linear",
        "--config.rounds=4",
        "--seeds=1",
    ],
    "experiments.figures.needs": ["--smoke"],
    "experiments.figures.links": ["--smoke", "--data=digits", "--rounds=2", "--seeds=1"],
    "experiments.links": [],
    "experiments.figures.adaptive_bits": ["--smoke", "--data=digits", "--rounds=2"],
    "experiments.figures.server": ["--size=2000", "--repeats=1"],
    "experiments.radius_law": ["--laws=gaussian:1"],
    "experiments.rotation_tables": ["--lattices=A2"],
    "experiments.central": [
        "--steps=10",
        "--config.data.name=shakespeare",
        "--config.model=transformer_tiny",
        "--config.text.context=8",
        "--config.text.stride=50",
    ],
    "experiments.adapters": ["--smoke"],
    "experiments.generate": ["--length=20"],
    "experiments.export": [],
    "experiments.fault_campaign": ["--runs=1", "--rounds=2"],
    "experiments.flower_bytes": ["--rounds=2"],
    "experiments.figures.device": ["--smoke"],
    "experiments.audit": ["--size=20000", "--trials=2000"],
    "experiments.benchmarks.wire": [
        "--size=2000",
        "--repeats=1",
        "--ratios=1",
        "--mechanisms=lrsuq_gaussian_z1",
    ],
    "experiments.benchmarks.cost": ["--mechanisms=cepam Z1"],
    "experiments.benchmarks.round": [
        "--models=mlp",
        "--mechanisms=cepam Z1",
        "--convolutions=cnn2",
        "--clients=2",
        "--steps=1",
        "--repeats=1",
    ],
    "experiments.figures": ["--only=inversion"],
    "experiments.figures.error_law": ["--size=2000"],
    "experiments.figures.scenario1": ["--smoke", "--data=digits", "--rounds=4", "--seeds=1", "--gammas=30"],
    "experiments.figures.scenario2": [
        "--smoke",
        "--settings=digits-linear",
        "--rounds=2",
        "--methods=fedavg,Gaussian noise,CEPAM Z1,Laplace noise",
    ],
    "experiments.figures.scenario3": [
        "--smoke",
        "--data=digits",
        "--rounds=2",
        "--partitions=iid,quantity",
        "--methods=Gaussian noise,CEPAM",
        "--seeds=1",
    ],
    "experiments.figures.gamma": ["--smoke", "--rounds=2", "--gammas=1,100"],
    "experiments.figures.bell": ["--smoke"],
    "experiments.figures.published": ["--smoke", "--models=linear", "--seeds=2"],
    "experiments.figures.thresholds": ["--smoke", "--model=linear", "--rules=mse,kl", "--seeds=2"],
    "experiments.figures.rounding": ["--smoke", "--models=linear", "--clients=3"],
    "experiments.figures.few_bits": ["--smoke", "--seeds=1"],
    "experiments.figures.lattice_dimension": ["--smoke", "--rounds=1", "--lattices=Z1,Z2"],
    "experiments.benchmarks.robust": [
        "--rules=median",
        "--clients=4",
        "--steps=1",
        "--repeats=1",
        "--large=4",
        "--large_rules=median",
        "--devices=2",
    ],
    "experiments.benchmarks.accelerator": [
        "--size=2000",
        "--decoded=2000",
        "--matrix=32",
        "--mechanisms=lrsuq_gaussian_z1",
        "--models=mlp",
        "--clients=2",
        "--many=0",
        "--steps=1",
        "--repeats=1",
    ],
    "experiments.benchmarks.deploy": ["--clients=3", "--rounds=3", "--processes=2"],
    "experiments.benchmarks.rejection": ["--size=20000", "--repeats=1"],
    "experiments.benchmarks.peers": ["--models=mlp", "--clients=2", "--rounds=1", "--turns=1"],
    "experiments.benchmarks.scale": [
        "--tables=clients,federation,models",
        *("--clients=2", "--populations=40", "--drawn=2", "--per_round=2"),
        *("--models=mlp", "--mechanisms=fedavg", "--chunks=2"),
    ],
    "experiments.benchmarks.sweeps": ["--runs=2", "--rounds=1", "--repeats=1", "--model=linear"],
    "experiments.benchmarks.startup": ["--models=mlp", "--mechanisms=fedavg", "--repeats=1"],
    "experiments.benchmarks.profile": ["--clients=2", "--rounds=1"],
    "experiments.benchmarks.quantizer": ["--sizes=1000", "--repeats=1", "--mechanisms=lrsuq_gaussian_z1"],
}

# In place of those, for trainings of a configuration that do not go with digits.
SHORT_OF = {
    "configs/shakespeare.py": [
        "--config.data.name=shakespeare",
        "--config.model=transformer_tiny",
        "--config.text.context=8",
        "--config.text.stride=50",
        "--config.num_clients=4",
        "--config.clients_per_round=2",
        "--config.local.steps=1",
        "--config.local.learning_rate=1e-3",
        "--config.mechanism.clip_norm=1",
    ]
}
# Programs that run exported files, and what they need beside requirements.txt.
EXPORTED = ("experiments.export", "experiments.figures.device")
# Programs that start a federation over sockets, and so need requirements-deploy.txt; one needs Flower too.
DEPLOYED = ("experiments.fault_campaign", "experiments.benchmarks.deploy", "experiments.flower_bytes")
# Flags that name an earlier run. It is made first, short, of this configuration.
EARLIER = re.compile(r"--(run|init|config\.init)=\S+")
MADE = "-m experiments.train --config=configs/shakespeare.py:fedavg --workdir=/tmp/made"


def folders_of_commands() -> dict[str, set[str]]:
    """{work directory: the different commands on all pages that write there}."""
    found = {}
    for command in COMMANDS:
        if folder := re.search(r"--workdir=(\S+)", command):
            found.setdefault(folder[1], set()).add(command)
    return found


def test_no_two_commands_share_a_work_directory():
    """Whoever follows two pages would be told that the folder holds another run."""
    shared = {folder: found for folder, found in folders_of_commands().items() if len(found) > 1}
    assert not shared


class Begun(Exception):
    """A command would now load examples or train."""


def begin_here(arguments: list[str], monkeypatch) -> None:
    """As `run_here`, up to where examples are loaded or a run begins, so that all flags have been checked."""

    def begin(*_, **__):
        raise Begun

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", begin)
        patch.setattr(training, "train_many", begin)
        patch.setattr(sources, "load_examples", begin)
        with pytest.raises(Begun):
            run_here(arguments, patch)


def short(command: str, workdir) -> list[str]:
    """Arguments of Python for a command of the pages, cut short, with this work directory."""
    command = re.sub(r"(configs/graphs\.py:)\w+-", r"\1motifs-", command)  # the others need files
    arguments = shlex.split(command)
    if arguments[1] not in SHORT:
        pytest.fail(
            f"a page runs {arguments[1]}, and tests/test_docs.py does not know how to make it short: "
            f'add "{arguments[1]}" to SHORT, with flags that make it take seconds, or [] if it always does'
        )
    own = any(name in command for name in OWN_DATA)
    trains = arguments[1] == "experiments.train"
    of_config = [flags for name, flags in SHORT_OF.items() if trains and f"--config={name}" in command]
    usual = [flag for flag in SHORT[arguments[1]] if not (own and flag.startswith("--config."))]
    arguments += of_config[0] if of_config else usual
    if "--workdir" in command:
        arguments.append(f"--workdir={workdir}")
    if ("--config=" in command and arguments[1] != "experiments.central") or "compare" in command:
        arguments += ["--config.rounds=1", "--config.eval_every=1"]
    return arguments


def what_runs(command: str) -> tuple[str, ...]:
    """The program of a shortened command and all flags that it is left with, but for the work directory."""
    _, module, *given = short(command, "")
    flags = dict(flag.partition("=")[::2] for flag in given)  # of one that is given twice the last counts
    flags.pop("--workdir", None)
    return (module, *sorted(map("=".join, flags.items())))


def the_same_as(command: str) -> str | None:
    """The first command of the pages that runs the same when both are cut short, if that is another one.

    Only of commands with a work directory, which load examples or train: `begin_here` stops them there.
    """
    if "--workdir" not in command:
        return None
    mine = what_runs(command)
    before = COMMANDS[: COMMANDS.index(command)]
    return next(
        (other for other in before if MODULE.match(other)[1] == mine[0] and what_runs(other) == mine), None
    )


def hospitals_of_one_round():
    config = hospitals.get_config("fedavg")
    config.rounds = config.eval_every = 1
    return config


def first_of(module: str) -> str:
    """The first command of the pages that runs this program."""
    return next(command for command in COMMANDS if MODULE.match(command)[1] == module)


def of_kind(command: str):
    """The command as a parameter: slow, unless it is one of `QUICK` or is only begun."""
    quick = MODULE.match(command)[1] in QUICK or the_same_as(command)
    return pytest.param(command, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize("command", [of_kind(command) for command in COMMANDS])
def test_command(command, tmp_path, monkeypatch, request):
    arguments = short(command, tmp_path)
    if arguments[1] in EXPORTED and util.find_spec("onnxruntime") is None:
        message = f"NO ONNXRUNTIME: {arguments[1]} is not run; pip install -r requirements-export.txt"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    if arguments[1] in DEPLOYED and util.find_spec("cryptography") is None:
        message = "NO CRYPTOGRAPHY: deployments are not run; pip install -r requirements-deploy.txt"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    if arguments[1] == "experiments.flower_bytes" and util.find_spec("flwr") is None:
        message = "NO FLOWER: bytes on its sockets are not counted; pip install -r requirements-deploy.txt"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    if the_same_as(command):  # and that runs: of this one, the flags are checked as they stand on the page
        begin_here([*shlex.split(command), f"--workdir={tmp_path}"], monkeypatch)
        return
    if "experiments.hospitals" in command:  # of a finished run of its own
        training.train(hospitals_of_one_round(), tmp_path / "run", progress=False)
        arguments = [f"--run={tmp_path / 'run'}" if a.startswith("--run=") else a for a in arguments]
    elif earlier := EARLIER.search(command):
        run_here(short(MADE, tmp_path / "made"), monkeypatch)
        arguments.append(f"--{earlier[1]}={tmp_path / 'made'}")
    if arguments[1].startswith("experiments.figures."):  # how examples are dealt out is not looked at
        request.getfixturevalue("no_picture")
    if arguments[1] in PROCESSES and command == first_of(arguments[1]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    else:
        run_here(arguments, monkeypatch)
    if arguments[1].startswith("experiments.figures."):
        check_figure(arguments[1].rpartition(".")[2], tmp_path)


def test_a_command_that_fails_is_noticed(tmp_path, monkeypatch, capsys):
    wrong = ["-m", "experiments.train", "--config.rounds=0", f"--workdir={tmp_path}"]
    with pytest.raises(AssertionError, match="exit code 1"):
        run_here(wrong, monkeypatch)
    assert "config.rounds is 0" in capsys.readouterr().err
    assert "workdir" not in flags.FLAGS and "config.rounds" not in flags.FLAGS
    assert not flags.FLAGS.is_parsed()


def test_a_command_that_runs_like_another_is_only_begun(monkeypatch, tmp_path, capsys):
    """Its own flags, of which a wrong one is noticed; nothing is run, whatever ran before in this process."""
    same = [command for command in COMMANDS if the_same_as(command)]
    assert same and all(the_same_as(the_same_as(command)) is None for command in same)
    first = f"-m experiments.figures.adaptive --data=digits --workdir={tmp_path / 'made'}"
    assert what_runs(first + " --seeds=3") == what_runs(first) != what_runs(first + " --rounds=7")
    for _ in range(2):
        begin_here(shlex.split(first), monkeypatch)
        assert not list(tmp_path.rglob("*.jsonl")) and not flags.FLAGS.is_parsed()
        for wrong in ("--no_such_flag=1", "--partitions=unheard_of"):  # what absl and what the figure refuses
            with pytest.raises(AssertionError, match="exit code 1"):
                begin_here([*shlex.split(first), wrong], monkeypatch)
        assert "unheard_of" in capsys.readouterr().err


def test_a_command_without_a_short_version_says_what_to_add(tmp_path):
    with pytest.raises(pytest.fail.Exception, match=r'add "experiments\.unheard_of" to SHORT'):
        short("-m experiments.unheard_of --workdir=/tmp/x", tmp_path)


def test_every_short_version_and_process_is_of_a_command():
    modules = {MODULE.match(command)[1] for command in COMMANDS}
    assert set(SHORT) <= modules and set(PROCESSES) <= modules


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_python(page, block):
    exec(compile(block, str(page), "exec"), {})


def test_the_readme_is_short_and_has_the_command_of_continuous_integration():
    text = README.read_text()
    assert len(text.splitlines()) <= 250
    pattern = r"^python3 -m venv .* -m pytest$"
    assert len(re.findall(pattern, text, re.M)) == 1
    assert pattern in (ROOT / ".ci/run").read_text()


def prose(text: str) -> str:
    """A page without its code."""
    text = re.sub(r"^( *)```.*?^ *```$", "", text, flags=re.S | re.M)
    return re.sub(r"`[^`\n]+`", "", text)


def anchors(text: str) -> list[str]:
    """The names that GitHub and MkDocs give to a page's headings."""
    text = re.sub(r"^( *)```.*?^ *```$", "", text, flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]


def broken(page, text: str) -> list[str]:
    """Relative links and pictures of a page that lead nowhere, or from the site's pages out of the site."""

    def names(path):
        return anchors(text if path == page else path.read_text())

    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        outside = page.parent == ROOT / "docs" and path.parent != page.parent
        if outside or not path.exists() or (anchor and anchor not in names(path)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths(page):
    text = page.read_text()
    assert not broken(page, text)
    assert len(set(anchors(text))) == len(anchors(text)), "two headings of a page have one name"
    assert not machine_paths(text)


def machine_paths(text: str) -> list[str]:
    """Paths that only one machine has."""
    return re.findall(r"(?<![\w.~-])/(?:work|home|root|Users|mnt|media|srv|opt)/\S*|\.\./shared\S*", text)


def test_broken_links_and_machine_paths_are_found():
    page = ROOT / "docs/index.md"
    text = "# A b\n[a](#a-b) [b](#a-c) ![c](mnist.png) ![d](none.png) [e](wire.md#none) [f](../README.md)"
    assert broken(page, text) == ["#a-c", "none.png", "wire.md#none", "../README.md"]
    found = machine_paths("see /home/me/data, ../shared/x, /tmp/run and https://a.org/home/b")
    assert found == ["/home/me/data,", "../shared/x,"]


def test_every_page_is_in_the_sites_menu_and_every_picture_on_a_page():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"\w+\.md$", (ROOT / "mkdocs.yml").read_text(), re.M)) == pages
    text = "".join(page.read_text() for page in PAGES)
    unused = [path.name for path in (ROOT / "docs").glob("*.png") if f"{path.name})" not in text]
    assert not unused


def test_the_citation_has_the_packages_version_and_licence():
    text = (ROOT / "CITATION.cff").read_text()
    assert f'\nversion: "{cepam_jax.__version__}"\n' in text
    assert (
        "\nlicense: Apache-2.0\n" in text
        and 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
    )
