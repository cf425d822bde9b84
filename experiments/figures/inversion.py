"""What each adversary sees of a training image: gradient inversion at several gammas.

  python -m experiments.figures.inversion --data=mnist --workdir=/tmp/inversion

A client sends the gradient of one example. The gradient of a dense layer is the outer product of the
example and the loss's derivative, so whoever sees it sees the example (1906.08935 starts from less). Here
the attack knows the derivative, the strongest case, and fits the image by least squares to what it sees:

  server            knows the shared randomness, so the cell that every coordinate lies in
  eavesdropper      has the message, but not the shared key: integers without their dither and scale. No noise
                    hides those: an integer other than zero gives its coordinate's sign away
  decoded update    is what an honest server passes on
  released model    is the mean over all clients

Rows: adversaries; columns: gamma. Below each picture: its correlation with the truth.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from scipy import stats

from cepam_jax import mechanisms
from cepam_jax.data import sources
from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import Keys, Knobs
from cepam_jax.privacy.audit import cell_widths
from experiments import cli, output
from experiments.tables import markdown

ADVERSARIES = ("server", "eavesdropper", "decoded update", "released model")
_CLASSES = 10


def gradient(image, label, weights):
    """(dense-layer gradient f32[classes, pixels] of the clipped update, loss derivative f32[classes])."""
    logits = weights @ image
    derivative = jax.nn.softmax(logits) - jax.nn.one_hot(label, _CLASSES)
    whole = jnp.outer(derivative, image)
    scale = jnp.minimum(1.0, 1.0 / jnp.linalg.norm(whole))  # clip norm 1
    return whole * scale, derivative * scale


def fit(seen, derivative):
    """Least-squares image for seen = derivative x image + error."""
    return derivative @ seen / np.sum(np.square(derivative))


def within_cells(center, width, scale):
    """Mean of N(0, scale^2) given that it lies in [center - width/2, center + width/2]."""
    low, high = (center - width / 2) / scale, (center + width / 2) / scale
    # On the side where the tails are small, for precision; all arguments as if center were positive.
    flip = np.sign(center) + (center == 0)
    low, high = np.where(flip > 0, low, -high), np.where(flip > 0, high, -low)
    mass = stats.norm.sf(low) - stats.norm.sf(high)
    mean = (stats.norm.pdf(low) - stats.norm.pdf(high)) / np.maximum(mass, 1e-300)
    return flip * scale * np.clip(mean, low, high)


def views(images, labels, gamma: float, seed: int = 0) -> dict:
    """Fitted images by adversary; the first example is the target."""
    pixels = images.shape[1]
    weights = 0.05 * jax.random.normal(jax.random.key(seed), (_CLASSES, pixels))
    mechanism = mechanisms.lrsuq()
    knobs = Knobs(sigma=1 / gamma)
    decoded = []
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        update, derivative = gradient(jnp.asarray(image), int(label), weights)
        keys = Keys(*(jax.random.fold_in(jax.random.key(seed + s), k) for s in (1, 2)))
        message = mechanism.encode(keys, update.ravel(), knobs)
        decoded.append(np.asarray(mechanism.decode(keys.shared, message, knobs)).reshape(_CLASSES, pixels))
        if k == 0:
            mine = np.asarray(derivative)
            widths = np.asarray(cell_widths(mechanism, keys.shared, update.size, knobs))
            symbols = np.asarray(message.symbols, np.float64).reshape(_CLASSES, pixels)
    widths = widths.reshape(_CLASSES, pixels).astype(np.float64)
    scale = float(np.linalg.norm(np.asarray(gradient(jnp.asarray(images[0]), int(labels[0]), weights)[0])))
    likely = within_cells(decoded[0].astype(np.float64), widths, scale / np.sqrt(widths.size))
    return {
        "server": fit(likely, mine),
        "eavesdropper": fit(symbols * widths.mean(), mine),
        "decoded update": fit(decoded[0], mine),
        "released model": fit(np.mean(decoded, 0), mine),
    }


def similarity(found, truth) -> float:
    """Correlation over pixels."""
    if np.std(found) == 0:
        return 0.0
    return float(np.corrcoef(found, truth)[0, 1])


def plot(truth, found, gammas, shape):
    figure = Figure(figsize=(1.5 * (len(gammas) + 1), 1.75 * len(ADVERSARIES)), layout="constrained")
    grid = figure.subplots(len(ADVERSARIES), len(gammas) + 1, squeeze=False)
    for i, adversary in enumerate(ADVERSARIES):
        pictures = [truth, *(found[g][adversary] for g in gammas)]
        for j, picture in enumerate(pictures):
            axes = grid[i, j]
            shown = np.clip(picture, *np.percentile(picture, [1, 99])) if j else picture
            axes.imshow(shown.reshape(shape), cmap="gray")
            axes.set(xticks=[], yticks=[])
            if i == 0:
                axes.set_title("truth" if j == 0 else f"gamma = {gammas[j - 1]:g}", fontsize=9)
            if j == 0:
                axes.set_ylabel(adversary, fontsize=9)
            else:
                axes.set_xlabel(f"r = {similarity(picture, truth):.2f}", fontsize=8)
    return figure


def define_flags():
    output.define_workdir()
    flags.DEFINE_string("data", "digits", "Data set with one channel: digits, mnist, fashion_mnist.")
    flags.DEFINE_string("data_dir", "", "As config.data.dir.")
    flags.DEFINE_list("gammas", ["1", "10", "30", "100", "1000"], "Clip norm over sigma.")
    flags.DEFINE_integer("clients", 30, "Clients that are averaged in the released model.")


def main():
    f = flags.FLAGS
    require_choice("--data", f.data, ("digits", "mnist", "fashion_mnist"))
    gammas = cli.numbers("gammas")
    train = sources.load_examples(f.data, f.data_dir).train
    shape = train["image"].shape[1:3]
    images = train["image"][: f.clients].reshape(f.clients, -1).astype(np.float32) / 255
    found = {gamma: views(images, train["label"][: f.clients], gamma) for gamma in gammas}
    rows = [
        {"gamma": gamma, **{a: similarity(found[gamma][a], images[0]) for a in ADVERSARIES}}
        for gamma in gammas
    ]
    table = markdown(
        ["gamma", *ADVERSARIES],
        [[f"{row['gamma']:g}", *(f"{row[a]:.3f}" for a in ADVERSARIES)] for row in rows],
    )
    text = f"correlation of the fitted image with the truth, {f.clients} clients\n\n" + table
    output.save(text, rows, plot(images[0], found, gammas, shape))


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"data": "digits", "gammas": ["10"]})
