"""The lines of metrics.jsonl: what a block of rounds did, and how the model is judged after it."""

import math

import numpy as np

from cepam_jax.run.evaluation import by_client


@np.errstate(invalid="ignore", over="ignore")  # a diverging run has nothing more to say here
def summarize(report, coordinates: int, seconds: float) -> dict:
    """What a line of metrics.jsonl says of a block of rounds; None (null) for NaN and infinite numbers.

    Args:
      report: RoundReport on the host, leading axis rounds; those that did not run are left out. Of bits that
        were counted in some rounds alone, the total is an estimate and called so.
      coordinates: d of one update.
      seconds: wall time of the block, its evaluation included.
    """
    ran = np.flatnonzero(report.ran)
    given = {name: v for name, v in report.participants._asdict().items() if v is not None}
    each = {name: np.asarray(v)[ran].astype(np.float64) for name, v in given.items()}
    rounds, came = len(ran), each.pop("present", None)
    if report.counted is not None:
        counted = np.asarray(report.counted)[ran] > 0
        each["counted"] = np.broadcast_to(counted[:, None], each["bits"].shape)
    if came is not None:  # places of Poisson sampling that nobody took are no participants
        each = {name: values[came > 0] for name, values in each.items()}
    participants, noise = each["bits"].size, each["noise"].sum()
    line = {
        "train_loss": each["loss"].sum() / participants,
        **_bits(each, coordinates),
        **({"uplink_bytes": each["bytes"].sum()} if each["bytes"].any() else {}),
        "downlink_bits": each["down_bits"].sum(),
        **({"downlink_bytes": each["down_bytes"].sum()} if each["bytes"].any() else {}),
        "update_norm": each["norm"].sum() / participants,
        "clipped_norm": each["clipped_norm"].sum() / participants,
        "snr": each["signal"].sum() / noise if noise > 0 else None,
        **_byzantine(each),
        **({} if report.opened is None else {"arrived": each["weight"].sum(1).mean()}),
        "seconds": seconds,
        "seconds_per_round": seconds / rounds,
    }
    return {name: _finite(value) for name, value in line.items()}


def _bits(each, coordinates: int) -> dict:
    """Lengths of messages: of all, or as if all were as long as those counted; nothing without any."""
    bits, participants = each["bits"], each["bits"].size
    taken = each["counted"] > 0 if "counted" in each else np.ones(bits.shape, bool)
    counted = int(taken.sum())
    if counted == participants:
        return {
            "bits_per_coordinate": bits.sum() / (participants * coordinates),
            "uplink_bits": bits.sum(),
        }
    if not counted:
        return {}
    mean = bits[taken].sum() / counted
    return {
        "bits_per_coordinate": mean / coordinates,
        "uplink_bits_estimate": mean * participants,
        "messages_counted": counted,
    }


def _byzantine(each) -> dict:
    """How many updates of a round were lies, and how many honest and lying ones the server refused."""
    if not {"lies", "admitted"} & each.keys():
        return {}
    rounds, zero = len(each["bits"]), np.zeros_like(each["bits"])
    lies, refused = each.get("lies", zero), 1 - each.get("admitted", zero + 1)
    return {
        "lies_per_round": lies.sum() / rounds,
        "refused_lies_per_round": (lies * refused).sum() / rounds,
        "refused_honest_per_round": ((1 - lies) * refused).sum() / rounds,
    }


def evaluated(task, evaluation, tests: int) -> dict:
    """Metrics of a line of metrics.jsonl, NaN and infinity as None; over clients, where they were evaluated.

    Args:
      task: what is learned.
      evaluation: Evaluation on the host.
      tests: number of test examples.
    """
    metrics = task.summarize(evaluation.test, float(tests))
    order = [*(name for name in task.formats if name in metrics), *metrics]  # "loss" before "accuracy"
    line = {name: _finite(metrics[name]) for name in order}
    if evaluation.clients is not None:
        line["clients"] = over_clients(task, evaluation)
    return line


@np.errstate(invalid="ignore", over="ignore")
def over_clients(task, evaluation) -> dict:
    """Spread of each metric over the clients that have examples, from the worst to the best.

    Clients of which a metric says nothing (`Task.undefined`: the area under the ROC curve of one outcome) are
    not among its "clients". NaN of any other metric is worse than every number.
    """
    spread = {}
    for name, each in by_client(task, evaluation).items():
        silent = np.isnan(each) & (name in task.undefined)
        values = each[(np.asarray(evaluation.counts) > 0) & ~silent]
        if not len(values):
            spread[name] = {"clients": 0, **dict.fromkeys(_SPREAD)}
            continue
        best_is_high = task.higher_is_better if name == task.headline else name not in task.lower
        values = np.where(np.isnan(values), -np.inf if best_is_high else np.inf, values)
        ordered = np.sort(values) if best_is_high else np.sort(values)[::-1]
        spread[name] = {
            "clients": len(values),
            "mean": _finite(values.mean()),
            "deviation": _finite(values.std()),
            "worst": _finite(ordered[0]),
            "tenth": _finite(np.quantile(values, 0.1 if best_is_high else 0.9)),
            "median": _finite(np.median(values)),
            "best": _finite(ordered[-1]),
        }
    return spread


_SPREAD = ("mean", "deviation", "worst", "tenth", "median", "best")


def _finite(value):
    return None if value is None or not math.isfinite(value) else float(value)


def progress_text(line: dict, task) -> str:
    """The figures beside the progress bar."""

    def number(name, form, missing="nan"):
        return missing if line.get(name) is None else format(line[name], form)

    bound = line.get("epsilon", {}).get("released_model")
    epsilon = "" if bound is None else f", epsilon {bound:.3g} (released model)"
    metrics = "".join(f"{name} {number(name, form)}, " for name, form in task.formats.items())
    bits = (
        f"{number('bits_per_coordinate', '.3f')} bits/coordinate, " if "bits_per_coordinate" in line else ""
    )
    return (
        f"{metrics}{bits}norm {number('update_norm', '.3g')}->{number('clipped_norm', '.3g')}, "
        f"SNR {number('snr', '.2g', 'inf')}{epsilon}"
    )
