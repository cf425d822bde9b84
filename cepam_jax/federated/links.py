"""Links: how long each participant of a round takes, and who is too late.

  seconds = latency + bits down / rate down + compute + latency + bits up / rate up

A round ends with the slowest participant, at a deadline, or when a share of the participants has arrived
(a quorum), perhaps with a deadline too. Who arrives later is left out of the aggregation; what it sent is
sent, and its epsilon is spent.

The phones are those of FLASH (Yang, Wang, Xu, Chen, Bian, Liu, Liu: Characterizing Impacts of Heterogeneity
in Federated Learning upon Large-Scale Smartphone Data, arXiv 2006.06983), as 19 devices were measured:
medians of 4,318 and 3,286 kB/s down and up, log-normal with deviations of .47 and .68 of the natural
logarithm, and a correlation of .45. The other presets are equal for all clients and have no latency.
"""

import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import ConfigError, require
from cepam_jax.registry import Registry

ENDS = ("slowest", "deadline", "quorum")
_COLUMNS = ("up", "down", "latency", "compute")
_LINKS = 0x4C494E4B  # apart from everything else that follows from a seed


class Links(NamedTuple):
    """The links of all clients, and how a round ends; numbers, or arrays [clients].

    Attributes:
      up, down: rates in bits per second.
      latency: seconds before the first bit of a message, either way.
      compute: seconds of local training in a round.
      deadline: seconds after which a round ends; infinity: never.
      quorum: share of the participants whose arrival ends a round; in `ClientArrays` how many they are,
        int32[].
    """

    up: Any
    down: Any
    latency: Any = 0.0
    compute: Any = 0.0
    deadline: Any = math.inf
    quorum: Any = 1.0

    @property
    def ends(self) -> str:
        """Which of `ENDS` ends a round, of links on the host."""
        return "quorum" if self.quorum < 1 else "deadline" if math.isfinite(self.deadline) else "slowest"


def seconds(links: Links, up_bits, down_bits):
    """Seconds from the beginning of a round to the arrival of a message; of any arrays that broadcast."""
    there = links.latency + down_bits / links.down
    return there + links.compute + links.latency + up_bits / links.up


def of_clients(links: Links, clients) -> Links:
    """The links of some clients, int32[...], in a round."""
    return links._replace(**{name: jnp.asarray(getattr(links, name))[clients] for name in _COLUMNS})


def awaited(quorum: float, participants: int) -> int:
    """How many participants are a share of them: rounded up, at least one."""
    return max(1, math.ceil(quorum * participants - 1e-6))


def end_of_round(links: Links, times):
    """f32[], when a round ends whose participants need these seconds, f32[participants]; in a round."""
    order = jnp.sort(times)  # what is not a number never arrives, and stands last
    return jnp.minimum(order[links.quorum - 1], links.deadline)


def _equal(rate: float):
    return lambda clients, seed: Links(np.full(clients, rate), np.full(clients, rate))


def phones(clients: int, seed: int) -> Links:
    """Rates of phones, drawn independently with a fixed seed (FLASH, see the module)."""
    draws = np.random.default_rng([_LINKS, seed]).standard_normal((2, clients))
    down = draws[0]
    up = 0.45 * draws[0] + math.sqrt(1 - 0.45**2) * draws[1]
    kilobyte = 8000.0
    return Links(3286 * kilobyte * np.exp(0.68 * up), 4318 * kilobyte * np.exp(0.47 * down))


# Name -> (clients, seed) -> Links with arrays f64[clients]: the choices of config.links.name.
PRESETS: Registry = Registry("link")
for _name, _rate in {"radio10k": 1e4, "radio100k": 1e5, "3g": 3e6, "ethernet10g": 1e10}.items():
    PRESETS.register(_name, _equal(_rate))
PRESETS.register("phones", phones)

_RATE = settings.positive(1.0, "")
_TIME = settings.not_negative(0.0, "")


def _each(field: settings.Field, help: str) -> settings.Field:
    """A number for each client, or none: as the preset or the file has it."""
    text = f"a tuple with {field.words()} for each client, or (): as the preset or the file has it"
    return settings.per_client(field, help, compiled=False)._replace(allowed=text)


settings.declare(
    "links",
    {
        "name": settings.choice(
            "none", "The clients' links: a preset, arrays, or a file.", PRESETS, "none", "arrays", "file"
        ),
        "up": _each(_RATE, "Bits per second of each client's way up."),
        "down": _each(_RATE, "Bits per second of each client's way down."),
        "latency": _each(_TIME, "Seconds before the first bit of each client's messages, either way."),
        "compute": _each(_TIME, "Seconds of each client's local training."),
        "file": settings.text(
            "",
            "CSV file with a line for each client and the columns up, down and perhaps latency and compute.",
            "a path",
            compiled=False,
        ),
        "seed": settings.integer(
            0, "Of links that are drawn (phones).", low=0, high=2**32 - 1, compiled=False
        ),
        "ends": settings.choice("slowest", "What ends a round; who is later is left out.", ENDS),
        "deadline": settings.not_negative(0.0, "Seconds after which a round ends; 0: never.", compiled=False),
        "quorum": settings.unit(1.0, "Share of the participants whose arrival ends a round.", compiled=False),
    },
    "How fast messages travel, and when a round ends.",
)


@settings.rule
def _rules(fields):
    links = {name: fields[f"links.{name}"] for name in ("name", "file", "ends", "deadline", "quorum")}
    clients = fields["num_clients"]
    for name in _COLUMNS:
        given = len(fields[f"links.{name}"])
        allowed = (clients,) if links["name"] == "arrays" and name in ("up", "down") else (0, clients)
        allowed = (0,) if links["name"] == "none" else allowed
        yield (
            given in allowed,
            f"links.{name}",
            "empty without config.links.name"
            if allowed == (0,)
            else f"one number for each of config.num_clients = {clients} clients"
            + (" (or empty)" if 0 in allowed else ""),
        )
    yield (
        (links["name"] == "file") == bool(links["file"]),
        "links.file",
        "the path of a CSV file where config.links.name is 'file', and else empty",
    )
    yield (
        links["name"] != "none" or links["ends"] == "slowest",
        "links.ends",
        "'slowest' where config.links.name is 'none': without links nobody is late",
    )
    yield (
        {"slowest": not links["deadline"], "deadline": links["deadline"] > 0, "quorum": True}[links["ends"]],
        "links.deadline",
        "positive where config.links.ends is 'deadline', and 0 where it is 'slowest'",
    )
    yield (
        (links["quorum"] < 1) == (links["ends"] == "quorum"),
        "links.quorum",
        "below 1 where config.links.ends is 'quorum', and else 1",
    )
    yield (
        not fields["local.normalize"] or links["ends"] == "slowest",
        "local.normalize",
        "False where participants may be late: the mean of their steps would be that of those who are not",
    )
    yield (
        not fields["mechanism.error_feedback"] or links["ends"] != "quorum",
        "mechanism.error_feedback",
        "False where a quorum ends a round: a client would have to be told whether its message counted",
    )


def of_config(config) -> Links | None:
    """The links of a configuration, f32[clients] each; None without.

    Raises:
      ConfigError: the file cannot be read; says which line.
    """
    section, clients = config.links, config.num_clients
    if section.name == "none":
        return None
    if section.name == "file":
        found = read(Path(section.file), clients)
    elif section.name == "arrays":
        found = Links(section.up, section.down)
    else:
        found = PRESETS.get_or_raise(section.name)(clients, section.seed)
    given = {name: section[name] for name in _COLUMNS if len(section[name])}
    found = found._replace(**given, deadline=section.deadline or math.inf, quorum=section.quorum)
    return checked(found, clients, config.clients_per_round or clients)


def checked(links: Links, clients: int, participants: int) -> Links:
    """Links as `ClientArrays` holds them: f32[clients], with the number of participants that is awaited.

    Raises:
      ConfigError: names what is no rate or time, or not as many as the clients.
    """
    require(isinstance(links, Links), "links", links, "a federated.Links")
    found = {}
    for name in _COLUMNS:
        field = _RATE if name in ("up", "down") else _TIME
        value = np.asarray(getattr(links, name), np.float64)
        fits = value.shape in ((), (clients,))
        require(fits, f"shape of links.{name}", value.shape, f"() or ({clients},), one for each client")
        wrong = [one for one in value.reshape(-1).tolist() if not field.test(one)]
        require(not wrong, f"links.{name}", wrong[:1], field.words())
        found[name] = np.broadcast_to(value, (clients,)).astype(np.float32)
    require(0 < links.deadline, "links.deadline", links.deadline, "positive, or infinity: no deadline")
    require(0 < links.quorum <= 1, "links.quorum", links.quorum, "a share above 0 and at most 1")
    number = awaited(float(links.quorum), participants)
    return Links(**found, deadline=np.float32(links.deadline), quorum=np.int32(number))


def read(path: Path, clients: int) -> Links:
    """Links from a CSV file with the columns up and down, and perhaps latency and compute.

    Args:
      path: of the file; the line of client k is the k-th below the names of the columns.
      clients: how many lines there must be.

    Raises:
      ConfigError: the file is not there, a column is missing or not known, or a cell is no number.
    """
    try:
        rows = list(csv.DictReader(path.expanduser().read_text().splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"config.links.file {str(path)!r} cannot be read: {error}") from error
    columns = {name.strip(): name for name in (rows[0] if rows else {}) if name is not None}
    if not {"up", "down"} <= columns.keys() <= set(_COLUMNS):
        raise ConfigError(
            f"config.links.file {str(path)!r} has the columns {', '.join(columns) or 'none'}; it must have "
            "up and down, and may have latency and compute"
        )
    require(len(rows) == clients, f"number of lines of {path}", len(rows), f"{clients}, one for each client")
    found = {}
    for short, name in columns.items():
        try:
            found[short] = np.array([float(row[name]) for row in rows])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"column {short} of {path} has a cell that is no number: {error}") from error
    return Links(**found)
