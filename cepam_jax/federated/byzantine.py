"""The settings of clients that lie and of the server's check; who lies, and what their data become."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import is_whole, require
from cepam_jax.federated.local import LocalUpdate
from cepam_jax.federated.lying import ATTACKS, Attack
from cepam_jax.federated.state import ClientArrays
from cepam_jax.tasks.base import Task

_LIARS = 0x4C494152  # apart from everything else that follows from a partition's seed

settings.declare(
    "byzantine",
    {
        "attack": settings.choice("none", "What clients that lie send, or learn from.", ATTACKS, "none"),
        "clients": settings.integer(0, "How many of all clients lie.", low=0, compiled=False),
        "strength": settings.not_negative(0.0, "Of the attack; 0: its usual one.", compiled=False),
        "check": settings.boolean(
            False, "Whether the server refuses decoded updates whose norm no honest client's would have."
        ),
        "pairs": settings.boolean(
            False, "Whether it also refuses updates that are nearer to each other than two noises ever are."
        ),
        "false_alarm": settings.number(
            1e-9,
            "Probability with which an honest message is refused where nobody lies, at most.",
            lambda v: 0 < v < 1,
            "a number above 0 and below 1",
        ),
    },
)


@settings.rule
def _rules(fields):
    attack, liars, clients = (
        fields["byzantine.attack"],
        fields["byzantine.clients"],
        fields["num_clients"],
    )
    yield (
        (attack == "none") == (liars == 0),
        "byzantine.clients",
        "positive where config.byzantine.attack is given, and 0 where it is 'none'",
    )
    yield (
        not fields["local.normalize"] or (attack == "none" and not fields["byzantine.check"]),
        "local.normalize",
        "False where clients lie or are checked: lies have no number of steps to divide by",
    )
    yield (
        fields["byzantine.check"] or not fields["byzantine.pairs"],
        "byzantine.pairs",
        "False unless config.byzantine.check is True: a lie that is long enough is near to nobody",
    )
    yield (
        not fields["byzantine.pairs"] or not fields["mechanism.error_feedback"],
        "byzantine.pairs",
        "False where clients remember what their messages lost: they are not told that they were refused",
    )
    yield liars < clients, "byzantine.clients", f"below config.num_clients = {clients}: somebody is honest"


class Byzantine(NamedTuple):
    """Clients that lie, and the server's check, as a federation in Python is given them.

    Attributes:
      attack: an Attack, or the name of one; None: nobody lies.
      liars: numbers of the clients that lie.
      strength: of the attack; 0: its usual one.
      false_alarm: probability with which the server refuses an honest message where nobody lies, at most;
        None: it checks none.
      pairs: whether it also refuses updates that are nearer to each other than two noises ever are; norms and
        pairs share the false alarm.
    """

    attack: Attack | str | None = None
    liars: tuple[int, ...] = ()
    strength: float = 0.0
    false_alarm: float | None = None
    pairs: bool = False


def checked(byzantine: Byzantine | None, clients: int) -> tuple[Attack | None, Any, Any]:
    """(attack, bool[clients] who lies, strength) of what is handed over in Python.

    Args:
      byzantine: None: nobody lies.
      clients: of the federation.

    Raises:
      ConfigError: names what does not fit.
    """
    byzantine = Byzantine() if byzantine is None else byzantine
    require(isinstance(byzantine, Byzantine), "byzantine", byzantine, "a federated.Byzantine")
    attack, given = byzantine.attack, byzantine.liars
    require(isinstance(given, (tuple, list)), "liars", given, "a tuple of clients' numbers")
    liars = list(given)
    attack = ATTACKS.get_or_raise(attack) if isinstance(attack, str) else attack
    require(isinstance(attack, Attack | None), "attack", attack, "a federated.Attack or the name of one")
    whole = all(is_whole(k) for k in liars)
    fits = whole and all(0 <= k < clients for k in liars)
    require(fits and len(set(liars)) == len(liars) < clients, "liars", liars, f"some clients below {clients}")
    require((attack is None) == (not liars), "liars", liars, "given together with attack, or neither")
    strength, alarm = byzantine.strength, byzantine.false_alarm
    for name, value in (("strength", strength), ("false_alarm", 0.5 if alarm is None else alarm)):
        require(isinstance(value, (int, float)) and not isinstance(value, bool), name, value, "a number")
    require(0 <= strength < np.inf, "strength", strength, "a positive number, or 0: the attack's usual one")
    require(alarm is None or 0 < alarm < 1, "false_alarm", alarm, "None, or between 0 and 1")
    flag = isinstance(byzantine.pairs, (bool, np.bool_))
    require(flag, "pairs", byzantine.pairs, "True or False")
    alone = byzantine.pairs and alarm is None
    require(not alone, "pairs", True, "False unless norms are checked (false_alarm), too")
    if attack is None:
        return None, None, None
    return attack, np.isin(np.arange(clients), liars), np.float32(strength or attack.strength)


def attack_of(config) -> Attack | None:
    """The attack of a configuration; None: nobody lies."""
    return None if config.byzantine.attack == "none" else ATTACKS.get_or_raise(config.byzantine.attack)


def liars_of(config) -> tuple[Any, Any]:
    """(bool[clients] who lies, f32[] the attack's strength) of a configuration; None: nobody."""
    attack = attack_of(config)
    if attack is None:
        return None, None
    strength = np.float32(config.byzantine.strength or attack.strength)
    return drawn(config.num_clients, config.byzantine.clients, config.seeds.partition), strength


def drawn(clients: int, liars: int, seed: int) -> np.ndarray:
    """bool[clients]: so many of them, drawn at random by a seed."""
    order = np.random.default_rng([_LIARS, seed]).permutation(clients)
    return np.isin(np.arange(clients), order[:liars])


def with_false_labels(local: LocalUpdate, task: Task, attack: Attack | None) -> LocalUpdate:
    """Local training, in which liars learn from examples with false labels if the attack turns labels.

    A task that has none to turn leaves it as it is: `facts.check` refuses it.
    """
    turned = task.turned
    if attack is None or not attack.turns_labels or turned is None:
        return local

    def run(model, arrays: ClientArrays, client, *rest):
        assert arrays.liars is not None
        false, lies = turned(arrays.examples), arrays.liars[client]
        seen = {
            name: array if false[name] is array else jnp.where(lies, false[name], array)
            for name, array in arrays.examples.items()
        }
        return local.run(model, arrays._replace(examples=seen), client, *rest)

    return local._replace(run=run)
