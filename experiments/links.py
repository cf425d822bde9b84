"""How long a finished run would have taken on links: times afterwards, from its metrics.jsonl.

  python -m experiments.links --run=/tmp/run --links=3g
  python -m experiments.links --run=/tmp/run --links=phones --link_seed=3 --compute=2
  python -m experiments.links --run=/tmp/run --links=my_links.csv --target=0.9

Every round ends with its slowest participant. A run whose rounds end before that (config.links.ends) is
refused: on other links others would have been late, and another model would have come out. So is one under
Poisson sampling, whose rounds have no fixed number of messages.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from cepam_jax.errors import ConfigError, require
from cepam_jax.federated import links as known
from cepam_jax.federated.links import Links
from cepam_jax.run import traffic
from cepam_jax.run.metrics import read_lines
from experiments import cli
from experiments.tables import markdown


class Rounds(NamedTuple):
    """What the rounds of a run sent.

    Attributes:
      up, down: f64[rounds, participants], bits.
      clients: int[rounds, participants], who took part.
    """

    up: np.ndarray
    down: np.ndarray
    clients: np.ndarray


def rounds_of(lines: list[dict], clients: int, participants: int) -> Rounds:
    """What all rounds sent that lines of metrics.jsonl are about.

    Args:
      lines: from round 0 on.
      clients: of the federation.
      participants: of a round; 0: all.

    Raises:
      ConfigError: the lines do not say how long each message was; what is missing.
    """
    participants, before = participants or clients, 0
    parts: list[Rounds] = []
    for line in lines:
        rounds, before = line["round"] - before, line["round"]
        if not rounds:
            continue
        sent = line.get("messages")
        if not isinstance(sent, dict) or not {"up", "down"} <= sent.keys():
            raise ConfigError(
                f"the line of round {line['round']} in metrics.jsonl has no 'messages' with the bits 'up' "
                "and 'down' of every participant: it is of an earlier release, or its config.metrics.bits is "
                "not 'every_round'; train it again"
            )
        everybody = np.tile(np.arange(participants), (rounds, 1))
        try:
            up, down = (traffic.lengthened(sent[name], rounds, participants) for name in ("up", "down"))
            who = np.array(sent["clients"]) if participants < clients else everybody
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"'messages' of round {line['round']} in metrics.jsonl are not those of {rounds} rounds with "
                f"{participants} of {clients} clients: {error}"
            ) from error
        parts.append(Rounds(up, down, who))
    empty = Rounds(*np.zeros((2, 0, participants)), np.zeros((0, participants), int))
    return Rounds(*(np.concatenate(part) for part in zip(empty, *parts, strict=True)))


def seconds_of_rounds(links: Links, rounds: Rounds) -> np.ndarray:
    """f64[rounds], when the slowest participant of each had sent its message.

    Args:
      links: of all clients, arrays [clients] or numbers.
      rounds: what was sent.
    """
    each = Links(
        *(
            np.asarray(value)[rounds.clients] if np.ndim(value) else value
            for value in (links.up, links.down, links.latency, links.compute)
        )
    )
    return known.seconds(each, rounds.up, rounds.down).max(1, initial=0.0)


def clock(lines: list[dict], links: Links, clients: int, participants: int) -> np.ndarray:
    """f64[lines], seconds from the beginning of a run to each of its lines."""
    found = seconds_of_rounds(links, rounds_of(lines, clients, participants))
    total = np.concatenate([[0.0], np.cumsum(found)])
    return total[[line["round"] for line in lines]]


def seconds_to(target: float, lines: list[dict], times: np.ndarray, name: str = "accuracy") -> float:
    """Seconds to the first line whose metric is at least the target; infinity where none is."""
    reached = [t for line, t in zip(lines, times, strict=True) if (line.get(name) or 0) >= target]
    return float(reached[0]) if reached else math.inf


def links_of(name: str, clients: int, seed: int, latency: float, compute: float) -> Links:
    """A preset, or a CSV file; with the same latency and computing time for all, where they are not 0.

    Raises:
      ConfigError: there is no such preset or file.
    """
    if name in known.PRESETS:
        found = known.PRESETS[name](clients, seed)
    elif name.endswith(".csv"):
        found = known.read(Path(name), clients)
    else:
        raise ConfigError(
            f"--links is {name!r}; it must be one of {', '.join(sorted(known.PRESETS))}, or a file *.csv"
        )
    found = found._replace(latency=latency or found.latency, compute=compute or found.compute)
    return known.checked(found, clients, clients)


def duration(seconds: float) -> str:
    """Seconds as text that is easy to read."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if size <= seconds < math.inf:
            return f"{seconds / size:.3g} {unit}"
    return "never" if math.isinf(seconds) else f"{seconds:.3g} s"


def main():
    f = flags.FLAGS
    workdir = Path(f.run).expanduser()
    require((workdir / "config.json").is_file(), "--run", f.run, "the work directory of a run")
    config = json.loads((workdir / "config.json").read_text())
    ends = config.get("links", {}).get("ends", "slowest")
    require(ends == "slowest", "config.links.ends of the run", ends, "'slowest': see --help")
    sampling = config.get("participation", {}).get("sampling", "fixed")
    require(sampling == "fixed", "config.participation.sampling of the run", sampling, "'fixed': see --help")
    lines = read_lines(workdir / "metrics.jsonl")
    require(len(lines) > 1, "--run", f.run, "a run of at least one round")
    clients, participants = config["num_clients"], config["clients_per_round"]
    links = links_of(f.links, clients, f.link_seed, f.latency, f.compute)
    times = clock(lines, links, clients, participants)
    sent = rounds_of(lines, clients, participants)
    headline = f.metric
    rows = [
        [
            line["round"],
            f"{line[headline]:.4f}" if line.get(headline) is not None else "",
            duration(seconds),
            f"{sent.up[: line['round']].sum() / 8e6:.4g}",
            f"{sent.down[: line['round']].sum() / 8e6:.4g}",
        ]
        for line, seconds in zip(lines, times, strict=True)
    ]
    print(markdown(["round", headline, f"time on {f.links}", "MB up", "MB down"], rows))
    if f.target:
        found = seconds_to(f.target, lines, times, headline)
        print(f"\n{headline} {f.target:g} after {duration(found)}")


def define_flags():
    flags.DEFINE_string("run", None, "Work directory of a finished run.", required=True)
    flags.DEFINE_string("links", "3g", f"One of {', '.join(sorted(known.PRESETS))}, or a CSV file.")
    flags.DEFINE_integer("link_seed", 0, "Of links that are drawn (phones).")
    flags.DEFINE_float("latency", 0.0, "Seconds before the first bit of a message, either way.")
    flags.DEFINE_float("compute", 0.0, "Seconds of local training in a round.")
    flags.DEFINE_float("target", 0.0, "Say also when the metric first reached this; 0: do not.")
    flags.DEFINE_string("metric", "accuracy", "Which metric of the lines is shown.")


if __name__ == "__main__":
    cli.run(main, define_flags)
