"""Many short runs among which only data, attack, liars and tolerated number differ, as one program.

Compiling a round takes longer than training some tens of rounds on small data. `runs.train_all` compiles
every attack and every number of tolerated lies anew; here both are data too: the program holds all attacks
and all variants of the rule, and each run says which. A run gives what `run.training.train` gives, up to
rounding (a test holds one against the other), but has no work directory: only the end is evaluated, no ledger
is kept and nothing is promised about privacy. Results are kept in a file by configuration, and not computed
again: after a change of the code begin a new one.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cepam_jax.data import sources
from cepam_jax.data.examples import number_of
from cepam_jax.data.partition import Partition
from cepam_jax.errors import ConfigError
from cepam_jax.federated import ATTACKS, Attack, aggregation, initial_state, local, make_round
from cepam_jax.federated.byzantine import with_false_labels
from cepam_jax.run import build, stacking
from cepam_jax.run.config import plain, validate
from cepam_jax.run.evaluation import make_evaluate
from experiments.runs import seeded

TOGETHER = 36  # runs of one call: what is lost when a process is killed
VARIES = ("byzantine.attack", "byzantine.tolerated")


class Choice(NamedTuple):
    """What tells the runs of a program apart beside their arrays; int32[] each.

    Attributes:
      attack, rule: places in the lists that the program was made from.
      rounds: to train; 0: this run only fills a call up.
    """

    attack: Any
    rule: Any
    rounds: Any


class _Asked(NamedTuple):
    """What `stacking.client_arrays` reads of a run."""

    config: Any
    split: Any
    origin: None = None


def any_of(names: tuple[str, ...], which) -> Attack:
    """An attack that is the one of this place, which may be known at run time only.

    Liars learn from false labels if any of the attacks is a false label; the other attacks craft what they
    send from the updates of honest clients alone.

    Args:
      names: of registered attacks.
      which: int32[], a place among them.
    """
    attacks = [ATTACKS.get_or_raise(name) for name in names]

    def craft(seen, strength):
        def branch(attack):
            if attack.craft is None:
                return lambda: seen.updates
            return lambda: jnp.broadcast_to(attack.craft(seen, strength), seen.updates.shape)

        return jax.lax.switch(which, [branch(attack) for attack in attacks])

    return Attack(craft, turns_labels=any(attack.turns_labels for attack in attacks))


def one_of(rules: list, which):
    """A gathering rule that is the one of this place; they differ in how many lies they tolerate alone."""
    first = rules[0]

    def combine(state, updates, facts):
        return jax.lax.switch(which, [rule.combine for rule in rules], state, updates, facts)

    def mix(products, facts):
        return jax.lax.switch(which, [rule.mix for rule in rules], products, facts)

    return first._replace(combine=combine, mix=None if first.mix is None else mix)


def _place(config, names) -> str:
    """The fields of a configuration without those that may differ within a program, as text."""
    fields = json.loads(build.compile_key(config))
    for name in names:
        section, field = name.split(".")
        fields[section].pop(field)
    return json.dumps(
        [fields, config.rounds, config.data.name, config.data.dir, config.byzantine.clients > 0]
    )


def _program(first, specification, names: tuple[str, ...], rules: list) -> Callable:
    """jitted (States' seeds, arrays, HeldOut, Choices) -> what each run comes to, leading axis [runs]."""
    task = build.task_of(first, specification)
    model = jax.eval_shape(task.initialize, jax.random.key(0))
    plan = build.plan_of(first, task, model, None, jax.default_backend())
    evaluate = make_evaluate(task, first.evaluation.batch_size)

    def one(seed, arrays, test, choice):
        mine = plan
        if rules[0].combine is not None:
            mine = mine._replace(aggregator=one_of(rules, choice.rule))
        if arrays.liars is not None:
            attack = any_of(names, choice.attack)
            update = local.make_local_update(task, build.training_of(first))
            mine = mine._replace(attack=attack, local_update=with_false_labels(update, task, attack))
        run_round = make_round(mine)
        state = initial_state(
            mine, task.initialize(seed), arrays.knobs, first.num_clients, False, arrays.knobs.clip[0]
        )

        def step(carry):
            number, state, sums = carry
            state, report = run_round(state, arrays)
            found = _counted(report.participants, sum(plan.segments))
            return number + 1, state, jax.tree.map(lambda a, b: a + b, sums, found)

        def goes_on(carry):
            number, state, _ = carry
            return (number < choice.rounds) & (state.invalid_client < 0)

        shapes = jax.eval_shape(lambda: _counted(run_round(state, arrays)[1].participants, 1))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        number, state, sums = jax.lax.while_loop(goes_on, step, (jnp.int32(0), state, zeros))
        means = jax.tree.map(lambda a: a / jnp.maximum(number, 1), sums)
        return evaluate(state.model, test, arrays, None).test, state.round, means

    def runs(seeds, arrays, examples, constants, test, choices):
        def of_run(given):
            seed, bare, choice = given
            return one(seed, bare._replace(examples=examples, constants=constants), test, choice)

        return jax.lax.map(of_run, (seeds, arrays, choices))

    return jax.jit(runs), task


def _counted(report, d: int) -> dict:
    """What is added up over rounds: lies and honest updates that were refused, bits a coordinate."""
    zero = jnp.float32(0)
    lies = jnp.zeros_like(report.loss) if report.lies is None else report.lies
    refused = zero if report.admitted is None else 1 - report.admitted
    return {
        "refused_lies": (refused * lies).sum(),
        "refused_honest": (refused * (1 - lies)).sum(),
        "bits": (report.bits * (1 - lies)).sum() / jnp.maximum((1 - lies).sum(), 1) / d,
    }


def train_all(
    configs: dict,
    seeds: int,
    path: str | Path,
    progress: bool = True,
    split_of: Callable[[Any, Any], Partition] = build.split_of,
) -> dict:
    """Trains every configuration with every seed.

    Args:
      configs: {label: configuration}; run s uses each seed of its configuration plus s.
      seeds: runs of each.
      path: JSON lines of what is known already; new results are added.
      progress: show a progress bar.
      split_of: (configuration, examples) -> which client holds which of them; a function by its name.

    Returns:
      {label: [{"accuracy", "rounds" done, and of a round in the mean "bits" a coordinate of honest messages,
      "refused_lies", "refused_honest"} of each seed]}. A run that met a NaN or infinite update has the
      accuracy before that round.

    Raises:
      ConfigError: an invalid configuration, or one of error feedback.
    """
    asked = [(label, seed, plain(seeded(configs[label], seed))) for label in configs for seed in range(seeds)]
    for _, _, config in asked:
        validate(config)
        if config.mechanism.error_feedback or config.privacy.target_epsilon or config.init:
            raise ConfigError("experiments.lies trains without error feedback, budgets and given models")
    path = Path(path)
    known = _read(path)
    groups: dict = {}
    for _, _, config in asked:
        if (name := _name(config, split_of)) not in known:
            groups.setdefault(_place(config, VARIES), {})[name] = config
    total = sum(map(len, groups.values()))
    with tqdm(total=total, disable=not progress) as bar, jax.enable_x64(False):
        for group in groups.values():
            for name, line in _trained(list(group.values()), split_of, bar):
                known[name] = line
                _add(path, name, line)
    results: dict = {label: [] for label in configs}
    for label, _, config in asked:
        results[label].append(known[_name(config, split_of)])
    return results


def _trained(configs, split_of, bar):
    """(name, result) of the runs of one program."""
    first = configs[0]
    names = tuple(dict.fromkeys(config.byzantine.attack for config in configs))
    attacked = names != ("none",)
    names = tuple(name for name in names if name != "none") or names
    numbers = list(dict.fromkeys(config.byzantine.tolerated for config in configs))
    rules = []
    for number in numbers:
        example = plain(next(c for c in configs if c.byzantine.tolerated == number))
        if attacked:  # by some attack that crafts, for all updates are gathered
            example.byzantine.attack = "sign_flip"
        rules.append(aggregation.of_config(example))
    data = sources.load_examples(first.data.name, first.data.dir, sources.options_of(first))
    program, task = _program(first, data.specification, names, rules)
    records = [_Asked(config, split_of(config, data)) for config in configs]
    arrays = stacking.client_arrays(records)
    if attacked:  # where nobody lies, it does not matter how
        nobody = {"liars": np.zeros(first.num_clients, bool), "strength": np.float32(1)}
        arrays = [each if each.liars is not None else each._replace(**nobody) for each in arrays]
    seeds = [jax.random.key(config.seeds.model) for config in configs]
    choices = [
        Choice(
            np.int32(names.index(config.byzantine.attack) if config.byzantine.clients else 0),
            np.int32(numbers.index(config.byzantine.tolerated)),
            np.int32(config.rounds),
        )
        for config in configs
    ]
    test = build.tested(data)
    constant = jax.device_put((data.train, data.constants, test))
    for start in range(0, len(configs), TOGETHER):
        part = slice(start, start + TOGETHER)
        slots = min(TOGETHER, len(configs))
        mine = choices[part]
        mine += [mine[0]._replace(rounds=np.int32(0))] * (slots - len(mine))
        given = [stacking.stacked(trees, slots) for trees in (seeds[part], arrays[part], mine)]
        sums, rounds, means = jax.tree.map(np.asarray, program(*given[:2], *constant, given[2]))
        for place, config in enumerate(configs[part]):
            metrics = task.summarize(
                {name: total[place] for name, total in sums.items()}, number_of(data.test)
            )
            found = {name: float(value[place]) for name, value in means.items()}
            line = {"accuracy": float(metrics["accuracy"]), "rounds": int(rounds[place]), **found}
            bar.update()
            yield _name(config, split_of), line


def _name(config, split_of=build.split_of) -> str:
    kind = "" if split_of is build.split_of else f"{split_of.__module__}.{split_of.__qualname__} "
    return (
        kind
        + hashlib.sha256(json.dumps(json.loads(config.to_json()), sort_keys=True).encode()).hexdigest()[:24]
    )


def _read(path: Path) -> dict:
    if not path.exists():
        return {}
    found = {}
    for text in path.read_text().splitlines():
        try:
            found.update([json.loads(text)])
        except ValueError:
            continue  # cut off by a kill
    return found


def _add(path: Path, name: str, line: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        cut = file.read(1) not in (b"", b"\n")  # by a kill: what follows must not be a part of that line
        file.write((("\n" if cut else "") + json.dumps([name, line]) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
