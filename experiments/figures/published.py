"""The authors' published figures: what their protocol gives with the exact quantizer, and what explains them.

  python -m experiments.figures.published --workdir=/tmp/published

The CEPAM papers report validation accuracies after 80 rounds in which CEPAM is ahead of FedAvg, .9274 against
.9169 with CNN2. An unbiased channel cannot be ahead of none by a point at an equal step. Here their protocol
is run with four kinds of methods, seed by seed:

  FedAvg            with and without their clip, L2 norm 1 for each tensor alone
  exact             the same with Gaussian noise, with SDQ, and with LRSUQ on Z1, Z2, Z3
  as published      a model of their public code's quantizer (`published_quantizer`), on blocks of 1, 2, 3
  longer steps      FedAvg with their clip and the step times 1.273, 1.178, 1.132

In that code, encoder and decoder draw different radii and dithers. The decoded update is then the update
times r'/r, with r and r' independent, whose mean is E[r] E[1/r]: 4 / pi = 1.273 on blocks of 1, 1.178 of 2,
1.132 of 3. On blocks of 1 half the noise's deviation is left, on the others none.

Protocol: MNIST, of whose training images 10,000 are held out; 30 clients with equal random shares; each round
every client sends the mean gradient of 15 of its images at the global model; server rate .3; images to
[-1, 1]; weights and biases begin uniform within 1 / sqrt(fan-in).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from matplotlib.figure import Figure

import cepam_jax as cepam
from cepam_jax import mechanisms, models
from cepam_jax.data import sources
from cepam_jax.federated.rounds import make_round
from cepam_jax.mechanisms import Knobs, Mechanism
from cepam_jax.mechanisms.base import About, Code, Message
from cepam_jax.privacy import within_client
from cepam_jax.run import evaluation
from experiments import cli, output
from experiments.output import SERVER_TRUSTED, Claim
from experiments.paired import (
    MARGIN,
    TOGETHER,
    above,
    any_of,
    differences,
    in_points,
    points,
    spread,
    verdict,
)
from experiments.plots import band
from experiments.tables import markdown

SMOKE = {"data": "digits", "models": ["linear"], "seeds": 2, "rounds": 8, "held_out": 300}
CLIENTS, DRAWS, CLIP = 30, 15, 1.0  # CLIP: of each tensor
LATTICE_SCALE = 0.001
EVALUATIONS = 20
CLIPPED = "FedAvg, clipped"
BLOCKS = (1, 2, 3)
# Ling and others, 2501.12046: validation accuracy after 80 rounds, MNIST, gradient updates.
PUBLISHED = {
    "cnn2": {
        **{"FedAvg": 0.9169, "SDQ": 0.9173, "Gaussian noise": 0.9184},
        **{"CEPAM Z1": 0.9274, "CEPAM Z2": 0.9226, "CEPAM Z3": 0.9229},
    },
    "mlp": {
        **{"FedAvg": 0.8206, "SDQ": 0.8217, "Gaussian noise": 0.8223},
        **{"CEPAM Z1": 0.8399, "CEPAM Z2": 0.8352, "CEPAM Z3": 0.8284},
    },
}


def gain(block: int) -> float:
    """E[r] E[1/r] of r, chi-distributed with block + 2 degrees of freedom: the mean of r'/r."""
    freedom = block + 2
    return math.exp(
        math.lgamma((freedom + 1) / 2) + math.lgamma((freedom - 1) / 2) - 2 * math.lgamma(freedom / 2)
    )


def published_quantizer(block: int, segments: tuple[int, ...]) -> Mechanism:
    """The quantizer of the authors' public code as it computes: NOT the papers' LRSUQ, and without its law.

    Tensor by tensor, x is cut into `block` strips of equal length whose j-th columns are the blocks. The
    encoder draws a radius r = sigma chi_(block + 2) for each block and a dither V uniform on the unit cube.
    For blocks of 1, m = round((x / r - V) / s): the dither counts 1 / s times too much. Otherwise
    m = round(x / (r s) - V), accepted where r s m lies within r of x, which for s = .001 the first one is.
    The decoder draws r' of its own and answers r' s m, on blocks of 1 with a dither of its own. In their code
    each client's dithers begin anew for each tensor and round from one seed; here they are new each time.

    Args:
      block: n, coordinates of a block.
      segments: lengths of the update's tensors.
    """

    def radii(key, columns, knobs):
        draws = jax.random.normal(key, (block + 2, columns))
        return knobs.sigma * jnp.sqrt(jnp.square(draws).sum(0))

    def strips(x):
        for number, part in enumerate(jnp.split(x, np.cumsum(segments)[:-1])):
            columns = -(-part.size // block)
            yield number, jnp.pad(part, (0, columns * block - part.size)).reshape(block, columns)

    def encode(keys, x, knobs, weight=None):
        found = []
        for number, part in strips(x):
            key = jax.random.fold_in(jax.random.fold_in(keys.shared, 0), number)
            r = radii(key, part.shape[1], knobs)
            v = jax.random.uniform(jax.random.fold_in(key, 1), part.shape, minval=-0.5, maxval=0.5)
            scaled = (part / r - v) / LATTICE_SCALE if block == 1 else part / (r * LATTICE_SCALE) - v
            found.append(jnp.floor(scaled + 0.5).astype(jnp.int32).reshape(-1))
        return Message(jnp.concatenate(found), None, {}, x.shape[0])

    def decode(shared, message, knobs):
        found, start = [], 0
        for number, length in enumerate(segments):
            columns = -(-length // block)
            symbols = message.symbols[start : start + block * columns].reshape(block, columns)
            key = jax.random.fold_in(jax.random.fold_in(shared, 1), number)
            v = jax.random.uniform(jax.random.fold_in(key, 1), symbols.shape, minval=-0.5, maxval=0.5)
            decoded = radii(key, columns, knobs) * LATTICE_SCALE * (symbols + (v if block == 1 else 0.0))
            found.append(decoded.reshape(-1)[:length])
            start += block * columns
        return jnp.concatenate(found)

    return Mechanism(
        encode,
        decode,
        lambda shared, message, knobs, weight=None: jnp.float32(32.0 * message.symbols.size),
        lambda x, knobs: x,
        About(f"published-{block}", "other", knobs=("sigma",), unbiased=False, local=False),
        Code("levels"),
        lambda x, knobs: jnp.float32(jnp.nan),  # it depends on x
    )


class Method(NamedTuple):
    """One row of the table.

    Attributes:
      name: of the row.
      mechanism: lengths of the tensors -> Mechanism.
      longer: by which the server's rate is multiplied.
      clips: whether each tensor is clipped.
    """

    name: str
    mechanism: object
    longer: float = 1.0
    clips: bool = True


def methods() -> list[Method]:
    """All rows."""
    lattices = {1: "Z1", 2: "Z2", 3: "Z3"}
    return [
        Method("FedAvg", lambda segments: mechanisms.identity(), clips=False),
        Method(CLIPPED, lambda segments: mechanisms.identity()),
        Method("SDQ", lambda segments: mechanisms.sdq("Z1", segments=segments)),
        Method("Gaussian noise", lambda segments: mechanisms.additive("gaussian")),
        *(
            Method(
                f"CEPAM {lattices[n]}",
                lambda segments, n=n: mechanisms.lrsuq("gaussian", lattices[n], segments),
            )
            for n in BLOCKS
        ),
        *(
            Method(f"as published, n = {n}", lambda segments, n=n: published_quantizer(n, segments))
            for n in BLOCKS
        ),
        *(
            Method(
                f"FedAvg, clipped, step x {gain(n):.3f}",
                lambda segments: mechanisms.identity(),
                gain(n),
            )
            for n in BLOCKS
        ),
    ]


def uniform_start(model, key):
    """The Model with weights and biases uniform within 1 / sqrt(inputs of the layer), as PyTorch begins."""

    def layer(number, parameters):
        bound = float(np.prod(parameters["kernel"].shape[:-1])) ** -0.5
        keys = jax.random.split(jax.random.fold_in(key, number), len(parameters))
        return {
            name: jax.random.uniform(k, value.shape, minval=-bound, maxval=bound)
            for k, (name, value) in zip(keys, sorted(parameters.items()), strict=True)
        }

    params = {name: layer(number, found) for number, (name, found) in enumerate(sorted(model.params.items()))}
    return model._replace(params=params)


def split_images(held_out: int, seed: int):
    """(training, validation) examples, images in [-1, 1]."""
    images = sources.load_examples(flags.FLAGS.data, flags.FLAGS.data_dir).train
    order = np.random.default_rng(seed).permutation(len(images["label"]))
    inputs = (images["image"].astype(np.float32) / 255 - 0.5) / 0.5
    found = {"inputs": inputs, "labels": np.asarray(images["label"], np.int32)}
    return tuple(
        {name: a[rows] for name, a in found.items()} for rows in (order[held_out:], order[:held_out])
    )


def federation_of(method: Method, net, train, sigma: float, seed: int):
    """(task, Federation) of their protocol with one method and seed."""
    task = cepam.tasks.classification(net, example=train["inputs"][0])
    clients = cepam.clients(train, partition="iid", number=CLIENTS, seed=seed)

    leaves = jax.tree.leaves(jax.eval_shape(task.initialize, jax.random.key(0)).params)
    segments = tuple(leaf.size for leaf in leaves)
    mechanism = method.mechanism(segments)
    if method.clips:
        mechanism = mechanisms.chain(mechanisms.clip("l2", segments), mechanism)
    given = {"sigma": sigma, "clip": CLIP * math.sqrt(len(segments)), "step": LATTICE_SCALE}
    knobs = Knobs(**{name: value for name, value in given.items() if name in mechanism.about.knobs})
    return task, cepam.Federation(
        task,
        clients,
        mechanism,
        knobs=knobs,
        server=optax.sgd(flags.FLAGS.rate * method.longer),
        steps=DRAWS,
        batch_size=1,
        update_kind="gradient",
        sampling="shuffle",
        seed=seed,
    )


def accuracies_of(method: Method, name: str, seeds: int, rounds: int, sigma: float) -> np.ndarray:
    """Validation accuracy f64[seeds, EVALUATIONS] over the rounds; compiled once for all seeds."""
    net, program, found = models.build(name, 10), None, []
    for seed in range(seeds):
        train, held_out = split_images(flags.FLAGS.held_out, seed)
        task, federation = federation_of(method, net, train, sigma, seed)
        program = program or _program(task, federation, rounds)
        start = federation.initialize()
        start = federation.initialize(uniform_start(start.model, jax.random.key(1000 + seed)))
        correct = program(start, federation.arrays, held_out)
        found.append(np.asarray(correct, np.float64) / len(held_out["labels"]))
    return np.array(found)


def _program(task, federation: cepam.Federation, rounds: int):
    """(state, arrays, held-out examples) -> examples that are right at each evaluation, f32[EVALUATIONS]."""
    one_round = make_round(federation.plan)
    evaluate = evaluation.make_evaluate(task, 1000)
    each = max(1, rounds // EVALUATIONS)

    @jax.jit
    def run(state, arrays, held_out):
        def some(state, _):
            state = jax.lax.fori_loop(0, each, lambda _, s: one_round(s, arrays)[0], state)
            tested = evaluation.HeldOut(held_out, arrays.constants)
            return state, evaluate(state.model, tested, arrays, jnp.zeros(0, jnp.int32)).test["accuracy"]

        # Rounds that are left over come first, so that as many are run as were asked for.
        state = jax.lax.fori_loop(0, rounds % each, lambda _, s: one_round(s, arrays)[0], state)
        return jax.lax.scan(some, state, None, length=rounds // each)[1]

    return run


def epsilon_rows(tensors: int, examples: int, rounds: int) -> list[list]:
    """What the papers' accounting and an honest one say of the same noise."""
    chance = within_client.chance(examples, DRAWS)
    moved = 2 * CLIP * math.sqrt(tensors)  # a replaced example, through a clip of each tensor
    rows = []
    for sigma in (0.001, 0.01, 0.1, 1.0):
        once = within_client.round_epsilon(1e-5, sigma / moved, chance)
        facts = cepam.privacy.Federation(
            outsiders="gaussian",
            server=None,
            norm="l2",
            clip=np.full(CLIENTS, CLIP * math.sqrt(tensors)),
            phases=(cepam.privacy.Phase(rounds, np.full(CLIENTS, sigma), np.zeros(CLIENTS)),),
            weights=np.ones(CLIENTS),
            relation="replace",
            aggregation="weighted_sum",
            summable=True,
            hidden=True,
            fresh=True,
        )
        honest = {row.adversary: float(row.epsilon.max()) for row in cepam.privacy.report(facts, 1e-5)}
        at = within_client.round_epsilon(0.015, sigma / moved, chance)
        rows.append([f"{sigma:g}", f"{at:.3g}", f"{once:.4g}", f"{honest['released_model']:.4g}"])
    return rows


def published_of(name: str) -> dict[str, float]:
    """The authors' accuracies of a model, which are MNIST's; empty where there are none."""
    return PUBLISHED.get(name, {}) if flags.FLAGS.data == "mnist" else {}


def claims_of(name: str, found: dict, seeds: int) -> list[Claim]:
    """What was published of one model, and what explains it."""
    last = {method: runs[:, -1] for method, runs in found.items()}
    exact = {n: in_points(last[f"CEPAM Z{n}"], last[CLIPPED]) for n in BLOCKS}
    flawed = {n: in_points(last[f"as published, n = {n}"], last[CLIPPED]) for n in BLOCKS}
    steps = {
        f"n = {n}": in_points(last[f"as published, n = {n}"], last[f"FedAvg, clipped, step x {gain(n):.3f}"])
        for n in BLOCKS
    }
    published = published_of(name)
    said = "CEPAM is ahead of FedAvg"
    if published:
        ahead = (100 * (published[f"CEPAM Z{n}"] - published["FedAvg"]) for n in BLOCKS)
        said += f" by {', '.join(f'{each:.2f}' for each in ahead)} points with n = 1, 2, 3"
    equal = differences(steps, MARGIN)

    def text(each):
        return "; ".join(f"n = {n}: {points(values / 100, np.zeros(seeds))}" for n, values in each.items())

    return [
        Claim(
            "2501.12046",
            f"{name}, gradients, {flags.FLAGS.data}: {said}; asked of the exact quantizer, both clipped",
            f"{text(exact)}; {seeds} seeds",
            verdict(any_of(above(values, MARGIN, 6) for values in exact.values()), seeds),
            f"holds if one n is ahead by more than {MARGIN:g} points; 6 bounds of paired t tests, {TOGETHER}",
            SERVER_TRUSTED,
        ),
        Claim(
            "hypothesis",
            f"{name}: the public code's quantizer is ahead of FedAvg with the same clip",
            f"{text(flawed)}; {seeds} seeds",
            verdict(any_of(above(values, 0, 6) for values in flawed.values()), seeds),
            f"holds if one n is ahead; 6 bounds of paired t tests, {TOGETHER}",
            SERVER_TRUSTED,
        ),
        Claim(
            "hypothesis",
            f"{name}: what it has ahead is its longer step: FedAvg with a step as long is as accurate",
            f"{equal.measured}; {seeds} seeds",
            verdict(equal.state, seeds),
            equal.why,
            SERVER_TRUSTED,
        ),
    ]


def plot(everything: dict, rounds: int) -> Figure:
    """Curves of the exact and the published kind, and bars of what is gained over FedAvg."""
    figure = Figure(figsize=(11, 3.8 * len(everything)), layout="constrained")
    panels = figure.subplots(len(everything), 2, squeeze=False)
    shown = ("FedAvg", "CEPAM Z1", "as published, n = 1", f"FedAvg, clipped, step x {gain(1):.3f}")
    for (name, found), (curves, bars) in zip(everything.items(), panels, strict=True):
        for number, method in enumerate(shown):
            runs = found[method]
            each = rounds // runs.shape[1]  # rounds that do not divide come first
            x = np.arange(1, runs.shape[1] + 1) * each + rounds % each
            band(curves, x, runs, method, number)
        top = max(runs[:, -1].mean() for runs in found.values())
        curves.set(
            xlabel="round", ylabel=f"validation accuracy, {name}", ylim=(max(0, top - 0.3), top + 0.02)
        )
        curves.grid(alpha=0.3)
        curves.legend(fontsize=8, loc="lower right")
        said = published_of(name)
        ahead = [100 * (said[f"CEPAM Z{n}"] - said["FedAvg"]) for n in BLOCKS] if said else None

        def over(label, found=found):
            """Points of each seed over FedAvg with the same clip, for each n."""
            base = found[CLIPPED][:, -1]
            return [in_points(found[label.format(n=n, gain=gain(n))][:, -1], base) for n in BLOCKS]

        groups = {
            "published, over its own FedAvg": ahead,
            "their code's quantizer": over("as published, n = {n}"),
            "FedAvg, longer step": over("FedAvg, clipped, step x {gain:.3f}"),
            "exact LRSUQ": over("CEPAM Z{n}"),
        }
        groups = {label: values for label, values in groups.items() if values is not None}
        hatches = ("", "//", "..", "xx")
        for number, (label, values) in enumerate(groups.items()):
            means = [np.mean(value) for value in values]
            errors = [np.std(v, ddof=1) / np.sqrt(np.size(v)) if np.size(v) > 1 else 0.0 for v in values]
            place = np.arange(len(BLOCKS)) + (number - (len(groups) - 1) / 2) * 0.2
            bars.bar(
                place, means, 0.2, yerr=errors, label=label, hatch=hatches[number], alpha=0.8, ec="black"
            )
        bars.axhline(0, color="black", lw=0.8)
        bars.set_xticks(range(len(BLOCKS)), [f"n = {n}" for n in BLOCKS])
        bars.set_ylabel("points over FedAvg with the same clip")
        bars.legend(fontsize=8)
    return figure


def define_flags():
    output.define_workdir()
    flags.DEFINE_enum("data", "mnist", ["mnist", "digits"], "Images; the authors' are MNIST's.")
    flags.DEFINE_list("models", ["cnn2", "mlp"], "Models, of linear, mlp, cnn2.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps data; by default as config.data.dir says.")
    flags.DEFINE_integer("seeds", 10, "Runs of each method.")
    flags.DEFINE_float("rate", 0.3, "Of the server; the authors' is .3.")
    flags.DEFINE_integer("rounds", 80, "Rounds of each run.")
    flags.DEFINE_float("sigma", 0.01, "Deviation of the noise.")
    flags.DEFINE_integer("held_out", 10_000, "Training images for validation.")
    flags.DEFINE_bool("progress", True, "Say what is done.")


def main():
    f = flags.FLAGS
    cli.choices("models", ("linear", "mlp", "cnn2"))
    everything, rows, claims = {}, [], []
    for name in f.models:
        found = {}
        for method in methods():
            found[method.name] = accuracies_of(method, name, f.seeds, f.rounds, f.sigma)
            if f.progress:
                print(f"{name}, {method.name}: {spread(found[method.name][:, -1])}", flush=True)
            rows.append({"model": name, "method": method.name, "accuracy": found[method.name].tolist()})
        everything[name] = found
        claims += claims_of(name, found, f.seeds)
    table = markdown(
        ["model", "method", "published", "validation accuracy", "points over FedAvg, clipped"],
        [
            [
                name,
                method,
                f"{said[method]:.4f}" if method in said else "",
                spread(runs[:, -1]),
                "" if method == CLIPPED else points(runs[:, -1], found[CLIPPED][:, -1]),
            ]
            for name, found in everything.items()
            for said in [published_of(name)]
            for method, runs in found.items()
        ],
    )
    examples = len(split_images(f.held_out, 0)[0]["labels"]) // CLIENTS
    chance = within_client.chance(examples, DRAWS)
    privacy = markdown(
        [
            "sigma",
            "one round, delta .015",
            "one round, delta 1e-5",
            f"{f.rounds} rounds, a client, delta 1e-5",
        ],
        epsilon_rows(8, examples, f.rounds),
    )
    text = (
        f"{f.rounds} rounds, {f.seeds} seeds (mean ± standard deviation; ± standard error of paired "
        f"differences), sigma {f.sigma:g}.\n\n{table}\n\n"
        f"Epsilon of CNN2's 8 tensors, each cut at {CLIP:g}: as the papers count it, for one of a client's "
        f"{examples:,} examples, which a round draws with probability {chance:.5f}, and composed over all "
        f"rounds for a whole client against the released model.\n\n{privacy}"
    )
    output.save(text, rows, plot(everything, f.rounds), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
