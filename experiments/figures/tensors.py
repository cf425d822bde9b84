"""Tensor by tensor: what real updates look like, and what the coder loses on them.

  python -m experiments.figures.tensors --workdir=/tmp/tensors

Trains FedAvg on text, graphs, tables and images, and sends clipped updates of the first client through
scalar LRSUQ. For each kind of tensor: the share of coordinates, and of rows, that are exactly zero; the
scale (root mean square over the noise); tails (root mean square over mean absolute value: 1 where all are
equally large, 1.25 for a Gaussian law, 1.41 for a Laplace law); and bits of its symbols with the law and
scale that the encoder chooses, with the mixture and the mean absolute value as its scale (the coder
before), and with the best law in hindsight: the most likely mixture of these two and Laplace laws of 35
scales, from next to zero on, given the symbols themselves, which no encoder can say for nothing.

The second table has whole messages: bytes of header, scales and symbols, of a bare message, beside those of
the coder before; and what the symbols would take in hindsight if it were said, at the entropy of these
flags, which rows of a matrix are zero.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from cepam_jax import mechanisms, wire
from cepam_jax.mechanisms import Keys, Knobs, code_length, counter, latents, laws, scale_code
from cepam_jax.wire import header
from experiments import cli, output
from experiments.real_updates import SETTINGS, Taken, updates
from experiments.tables import markdown

SCALES = 2.0 ** np.arange(-12, 5.1, 0.5)
STEPS = 60  # of expectation maximization


KINDS = (
    ("embedding", ("embedding", "positions")),
    ("norm", ("norm",)),
    ("bias", ("bias",)),
    ("attention", ("query/", "key/", "value/", "out/")),
    ("convolution", ("Conv",)),
)


def kind_of(name: str, shape: tuple[int, ...], last: str) -> str:
    """What a tensor is, by its path; `last` is the path of the network's last kernel."""
    for kind, parts in KINDS:
        if any(part in name for part in parts):
            return kind
    if not shape:
        return "number"
    return "head" if name == last else "dense"


def places(message, shared) -> tuple[np.ndarray, np.ndarray]:
    """Middle and width of the cell that each symbol of scalar LRSUQ names, f64[d] each, in units of sigma."""
    words = counter.words(counter.stream(shared, 1), 0, jnp.arange(message.length, dtype=jnp.uint32))
    width = np.asarray(latents.radius(words[0], latents.radius_table("gaussian", 1)), np.float64) * 2
    dither = np.asarray(counter.centered(words[1]), np.float64)
    return (np.asarray(message.symbols) + dither) * width, width


def in_hindsight(center: np.ndarray, width: np.ndarray, others: list[np.ndarray]) -> float:
    """Least bits of symbols by a mixture of laws, whose shares are found from the symbols themselves.

    Args:
      center: f64[k], middle of each symbol's cell.
      width: f64[k], its width.
      others: f64[k] each, nats of the symbols by laws that join the Laplace laws of `SCALES`.
    """
    one = (1.0, 1.0, 1.0)
    lengths = np.stack([laws.cell_nats_on_host(center, width, scale, one) for scale in SCALES] + others)
    least = lengths.min(0)
    likelihood, best = np.exp(least - lengths), lengths.sum(1)
    # Each step lowers the bits; where symbols say little, steps are short: they begin with the best law.
    weights = np.full(len(lengths), 0.01 / len(lengths))
    weights[np.argmin(best)] += 0.99
    for _ in range(STEPS):
        share = weights[:, None] * likelihood
        weights = (share / share.sum(0)).mean(1)
    return float(min(best.min(), (least - np.log(weights @ likelihood)).sum()) / np.log(2))


def flag_bits(flags: np.ndarray) -> float:
    """Entropy of flags bool[k] that are independent and alike, in bits of all together."""
    share = flags.mean()
    return (
        0.0
        if share in (0, 1)
        else float(-len(flags) * (share * np.log2(share) + (1 - share) * np.log2(1 - share)))
    )


def measure(setting: str, taken: Taken, gamma: float) -> tuple[list[dict], dict]:
    """A row for each kind of tensor, and one of the whole message, of the first client's update."""
    clip = SETTINGS[setting].clip
    x = taken.updates[0] * jnp.minimum(1, clip / jnp.linalg.norm(taken.updates[0]))
    keys, knobs = Keys(jax.random.key(1), jax.random.key(2)), Knobs(sigma=np.float32(clip / gamma))
    mechanism = mechanisms.lrsuq(segments=taken.segments)
    message = jax.jit(mechanism.encode)(keys, x, knobs)
    center, width = places(message, keys.shared)
    scaled = np.asarray(x, np.float64) / float(knobs.sigma)
    moments = code_length.fit_scales(x, taken.segments, "mixture")
    sums: dict[str, np.ndarray] = {}
    start = 0
    for i, (name, shape) in enumerate(zip(taken.names, taken.shapes, strict=True)):
        own = slice(start, start + taken.segments[i])
        start = own.stop
        values = scaled[own]
        rows = values.reshape(shape[0] if shape else 1, -1)
        parts = laws.PARTS[np.asarray(message.side["law"])[i]].astype(float)
        coded = []
        for exponent, law in ((message.side["scale"][i], parts), (moments[i], laws.PARTS[laws.MIXTURE])):
            scale = 2.0 ** (int(exponent) / 8) / float(knobs.sigma)
            coded.append(laws.cell_nats_on_host(center[own], width[own], scale, tuple(law)))
        found = [len(values), (values == 0).sum(), len(rows), (rows == 0).all(1).sum()]
        found += [np.abs(values).sum(), (values**2).sum(), *(nats.sum() / np.log(2) for nats in coded)]
        least = in_hindsight(center[own], width[own], coded)
        moved = np.repeat((rows != 0).any(1), rows.shape[1])
        known = flag_bits((rows != 0).any(1))
        if moved.any():
            known += in_hindsight(center[own][moved], width[own][moved], [nats[moved] for nats in coded])
        found += [least, min(least, known)]
        kind = kind_of(name, shape, taken.last_kernel)
        sums[kind] = sums.get(kind, 0.0) + np.array(found)
    scales = float(
        scale_code.bits(message.side["scale"], message.side["law"], taken.segments, len(laws.LAWS))
    )
    size = len(wire.pack(message, mechanism, keys.shared, knobs, bare=True))
    about = {"setting": setting, "round": taken.round, "gamma": gamma}
    whole = about | {"coordinates": len(scaled), "tensors": len(taken.names), "bytes": size}
    every = sum(sums.values())
    whole |= {"header": header.BARE_BYTES, "scales": scales / 8}
    whole |= {"chosen": every[6] / 8, "mixture": every[7] / 8, "hindsight": every[8] / 8}
    whole["rows_known"] = every[9] / 8
    return [about | {"kind": kind} | _row(values) for kind, values in sums.items()], whole


def _row(sums: np.ndarray) -> dict:
    """Shares, scale, tails and bits per coordinate from sums over tensors."""
    count, zeros, rows, zero_rows, absolute, squares, *bits, _ = map(float, sums)
    size = (squares / count) ** 0.5
    chosen, mixture, hindsight = (each / count for each in bits)
    found = {"coordinates": int(count), "zeros": zeros / count, "zero_rows": zero_rows / rows, "scale": size}
    found["tails"] = size * count / absolute if absolute else float("nan")
    return found | {"chosen": chosen, "mixture": mixture, "hindsight": hindsight}


def over(bits: float, least: float) -> str:
    """How much more one number of bits is than another, in percent; "" where both are next to nothing."""
    return f"{100 * (bits / least - 1):+.0f} %" if least > 1e-4 else ""


def define_flags():
    output.define_workdir()
    default = ["shakespeare", "motifs", "hospitals", "digits mlp"]
    flags.DEFINE_list("settings", default, f"Data and model, of {', '.join(SETTINGS)}.")
    flags.DEFINE_list("gammas", ["100", "10"], "Clip norm over sigma.")
    flags.DEFINE_string("data_dir", "", "As config.data.dir.")


def main():
    gammas = cli.numbers("gammas")
    cli.choices("settings", SETTINGS)
    tensors, messages = [], []
    for setting in tqdm.tqdm(flags.FLAGS.settings, unit="setting", dynamic_ncols=True):
        for taken in updates(setting, flags.FLAGS.data_dir):
            for gamma in gammas:
                each, whole = measure(setting, taken, gamma)
                tensors += each
                messages.append(whole)
    output.save(tables(tensors, messages), tensors + messages)


def before(row: dict) -> int:
    """Bytes of a message as it was: 15 of header, two for each scale, the mixture's symbols in words."""
    return 15 + 2 * row["tensors"] + 4 * math.ceil(row["mixture"] / 4)


def tables(tensors: list[dict], messages: list[dict]) -> str:
    """Markdown of both tables, from the rows that `measure` gives."""
    about = ["updates", "after round", "gamma"]
    numbers = ["chosen", "mixture", "hindsight"]
    first = markdown(
        [
            *about,
            "tensors",
            "coordinates",
            "zeros",
            "rows of zeros",
            "scale",
            "tails",
            *numbers,
            "chosen over hindsight",
            "mixture over hindsight",
        ],
        [
            [
                *(row["setting"], row["round"], f"{row['gamma']:g}", row["kind"], row["coordinates"]),
                *(f"{100 * row[name]:.0f} %" for name in ("zeros", "zero_rows")),
                *(f"{row['scale']:.3g}", f"{row['tails']:.2f}"),
                *(f"{row[name]:.4f}" for name in numbers),
                *(over(row[name], row["hindsight"]) for name in ("chosen", "mixture")),
            ]
            for row in tensors
        ],
    )
    second = markdown(
        [
            *about,
            "coordinates",
            "tensors",
            "header",
            "scales",
            "symbols, chosen",
            "symbols, mixture",
            "symbols, hindsight",
            "hindsight, rows known",
            "message",
            "before",
            "not symbols",
            "before",
        ],
        [
            [
                *(row["setting"], row["round"], f"{row['gamma']:g}", row["coordinates"], row["tensors"]),
                *(row["header"], f"{row['scales']:.1f}"),
                *(f"{row[name]:.1f}" for name in [*numbers, "rows_known"]),
                *(row["bytes"], before(row)),
                f"{100 * (row['header'] + row['scales']) / row['bytes']:.0f} %",
                f"{100 * (15 + 2 * row['tensors']) / before(row):.0f} %",
            ]
            for row in messages
        ],
    )
    return f"Bits per coordinate.\n\n{first}\n\nBytes.\n\n{second}"


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"settings": ["hospitals"], "gammas": ["30"]})
