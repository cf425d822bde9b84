"""Your own flax model and your own arrays, each owner a client, in your own loop.

  python -m examples.own_model

The model has batch normalization: its running means and variances are sent with the parameters, so the
quantizer protects them too, and the server averages them.
"""

import flax.linen as nn
import numpy as np
import optax

import cepam_jax as cepam


class Net(nn.Module):
    """Any flax.linen module. One that behaves differently in training has an argument `train`."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(16)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        return nn.Dense(3)(nn.relu(x))


def sensors(number: int, each: int, seed: int):
    """Made-up readings f32[examples, 4], their kinds int[examples] and whose they are: sensors differ."""
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(number), each)
    kind = random.integers(0, 3, number * each)
    centres = np.array([[2, 0, 0, 1], [0, 2, 0, -1], [0, 0, 2, 0]])[kind]
    drift = random.normal(0, 0.3, (number, 4))[owner]
    return (centres + drift + random.normal(0, 0.7, centres.shape)).astype(np.float32), kind, owner


def main(number: int = 20, each: int = 50, rounds: int = 10) -> dict[str, float]:
    """Trains, prints what came out, and returns the metrics on the test readings."""
    x, y, owner = sensors(number, each, seed=0)
    test = {"inputs": x[::5], "labels": y[::5]}
    train = np.arange(len(x)) % 5 > 0

    task = cepam.tasks.classification(Net(), example=x[0])
    clients = cepam.clients({"inputs": x[train], "labels": y[train]}, owners=owner[train])
    quantizer = cepam.mechanisms.chain(cepam.mechanisms.clip("l2"), cepam.mechanisms.lrsuq("gaussian", "Z2"))
    federation = cepam.Federation(
        task,
        clients,
        quantizer,
        sigma=0.05,  # deviation of the error, which is the privacy noise
        clip=2.0,  # largest L2 norm of an update
        optimizer=lambda n: optax.adam(optax.cosine_decay_schedule(0.01, rounds)(n)),
        steps=10,
        batch_size=20,
    )
    state = federation.initialize()
    for number_of_round in range(1, rounds + 1):
        state, report = federation.step(state)
        bits = float(report.participants.bits.mean()) / federation.coordinates
        loss = float(report.participants.loss.mean())
        print(f"round {number_of_round}: training loss {loss:.3f}, {bits:.2f} bits per coordinate")
    metrics = federation.evaluate(state, test)
    print(f"test: loss {metrics['loss']:.3f}, accuracy {metrics['accuracy']:.3f}")
    worst = federation.evaluate_clients(state)["accuracy"].min()
    print(f"the worst client's training examples: accuracy {worst:.3f}\n")
    print(federation.privacy(delta=1e-5))
    return metrics


if __name__ == "__main__":
    main()
