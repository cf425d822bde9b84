"""Next characters of a play: each speaker is a client, and the task is written out in full.

  python -m examples.characters
  python -m examples.characters --text=play.txt     (lines "SPEAKER: what is said")

A task is a tuple of four functions. What is learned from each client's lines never leaves it but through the
quantizer.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import cepam_jax as cepam
from cepam_jax.tasks import Model, Task

CONTEXT = 16
ALPHABET = "abcdefghijklmnopqrstuvwxyz .,;'?!-"

# William Shakespeare: Hamlet, act 1, scene 1, the beginning.
PLAY = """
BERNARDO: Who's there?
FRANCISCO: Nay, answer me: stand, and unfold yourself.
BERNARDO: Long live the king!
FRANCISCO: Bernardo?
BERNARDO: He.
FRANCISCO: You come most carefully upon your hour.
BERNARDO: 'Tis now struck twelve; get thee to bed, Francisco.
FRANCISCO: For this relief much thanks: 'tis bitter cold, and I am sick at heart.
BERNARDO: Have you had quiet guard?
FRANCISCO: Not a mouse stirring.
BERNARDO: Well, good night. If you do meet Horatio and Marcellus, the rivals of my watch, bid them make haste.
FRANCISCO: I think I hear them. Stand, ho! Who's there?
HORATIO: Friends to this ground.
MARCELLUS: And liegemen to the Dane.
FRANCISCO: Give you good night.
MARCELLUS: O, farewell, honest soldier: who hath relieved you?
FRANCISCO: Bernardo has my place. Give you good night.
MARCELLUS: Holla! Bernardo!
BERNARDO: Say, what, is Horatio there?
HORATIO: A piece of him.
BERNARDO: Welcome, Horatio: welcome, good Marcellus.
MARCELLUS: What, has this thing appear'd again to-night?
BERNARDO: I have seen nothing.
MARCELLUS: Horatio says 'tis but our fantasy, and will not let belief take hold of him.
HORATIO: Tush, tush, 'twill not appear.
BERNARDO: Sit down awhile; and let us once again assail your ears, that are so fortified against our story.
HORATIO: Well, sit we down, and let us hear Bernardo speak of this.
"""


def windows(lines: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping pieces int32[examples, CONTEXT + 1] of what is said, and who says them [examples]."""
    number = {letter: i for i, letter in enumerate(ALPHABET)}
    pieces, speakers = [], []
    for line in lines:
        speaker, colon, said = line.partition(": ")
        text = [number[letter] for letter in said.lower().strip() if letter in number]
        text = [number[" "]] * CONTEXT + text
        for start in range(0, len(text) - CONTEXT if colon else 0, 4):
            piece = text[start : start + CONTEXT + 1]
            pieces.append(piece + [number[" "]] * (CONTEXT + 1 - len(piece)))
            speakers.append(speaker)
    return np.array(pieces, np.int32), np.array(speakers)


class Reader(nn.Module):
    """Logits of the character after each position, from those up to there: causal convolutions."""

    width: int = 32

    @nn.compact
    def __call__(self, letters):
        x = nn.Embed(len(ALPHABET), self.width)(letters)
        for dilation in (1, 2, 4):
            x = x + nn.relu(nn.Conv(self.width, (2,), kernel_dilation=dilation, padding="CAUSAL")(x))
        return nn.Dense(len(ALPHABET))(x)


def next_character(module: nn.Module) -> Task:
    """The task, out of its four functions; examples are {"letters": int32[CONTEXT + 1]}."""

    def initialize(key) -> Model:
        return Model(module.init(key, jnp.zeros((1, CONTEXT), jnp.int32))["params"])

    def losses(model, letters):  # f32[batch, CONTEXT]
        logits = module.apply({"params": model.params}, letters[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, letters[:, 1:]), logits

    def loss(model, batch, constants, key):  # the mean over examples of what depends on one example each
        return losses(model, batch["letters"])[0].mean(), None

    def evaluate(model, batch, constants):  # each example's own part of every sum
        each, logits = losses(model, batch["letters"])
        right = logits.argmax(-1) == batch["letters"][:, 1:]
        return {"loss": each.mean(1), "right": right.mean(1)}

    def summarize(sums, count):
        nats = float(sums["loss"]) / count
        return {"loss": nats, "bits": nats / np.log(2), "accuracy": float(sums["right"]) / count}

    formats = {"loss": ".3f", "bits": ".2f", "accuracy": ".3f"}
    return Task(initialize, loss, evaluate, summarize, "accuracy", higher_is_better=True, formats=formats)


def main(text: str = PLAY, rounds: int = 30) -> dict[str, float]:
    """Trains on all speakers' lines, prints how each is predicted, and returns the metrics over all."""
    letters, speakers = windows(text.strip().splitlines())
    clients = cepam.clients({"letters": letters}, owners=speakers)
    quantizer = cepam.mechanisms.chain(cepam.mechanisms.clip("l2"), cepam.mechanisms.lrsuq("gaussian"))
    federation = cepam.Federation(
        next_character(Reader()),
        clients,
        quantizer,
        sigma=0.01,
        clip=2.0,
        optimizer=optax.adam(3e-3),
        steps=10,
        batch_size=16,
        aggregator="examples",  # who says more counts more; how much everybody says is then public
    )
    state = federation.initialize()
    for _ in range(rounds):
        state, _ = federation.step(state)
    metrics = federation.evaluate(state, {"letters": letters})
    print(f"all: {metrics['bits']:.2f} bits per character, accuracy {metrics['accuracy']:.3f}")
    each = federation.evaluate_clients(state)
    for name, bits, accuracy in zip(clients.owners, each["bits"], each["accuracy"], strict=True):
        print(f"{name}: {bits:.2f} bits per character, accuracy {accuracy:.3f}")
    print(federation.privacy())  # of a whole speaker; noise this small is no protection, and it says so
    return metrics


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="a file of lines 'SPEAKER: what is said'")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", False)
    main(arguments.text.read_text() if arguments.text else PLAY, arguments.rounds)
