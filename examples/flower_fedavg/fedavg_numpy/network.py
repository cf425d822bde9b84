"""The network of the hospitals' configuration in NumPy: layers with ReLU between, and one log odds out."""

import numpy as np

Arrays = dict[str, np.ndarray]


def outputs(model: Arrays, x: np.ndarray) -> list[np.ndarray]:
    """What each layer is given, and at last the log odds f32[n, 1].

    Args:
      model: "kernel0" [features, width], "bias0" [width], "kernel1", ...
      x: f32[n, features].
    """
    found, number = [x], len(model) // 2
    for i in range(number):
        z = found[-1] @ model[f"kernel{i}"] + model[f"bias{i}"]
        found.append(np.maximum(z, 0) if i < number - 1 else z)
    return found


def loss(model: Arrays, x: np.ndarray, label: np.ndarray) -> float:
    """Mean binary cross-entropy in nats.

    Args:
      model, x: as for `outputs`.
      label: 0 or 1, [n].
    """
    odds = outputs(model, x)[-1][:, 0]
    return float(np.mean(np.logaddexp(0, odds) - label * odds))


def gradient(model: Arrays, x: np.ndarray, label: np.ndarray) -> Arrays:
    """That of `loss` by the model's arrays."""
    layers, found = outputs(model, x), {}
    odds = layers[-1]
    back = (1 / (1 + np.exp(-odds)) - label[:, None]) / np.float32(len(x))
    for i in reversed(range(len(model) // 2)):
        found[f"kernel{i}"], found[f"bias{i}"] = layers[i].T @ back, back.sum(0)
        back = (back @ model[f"kernel{i}"].T) * (layers[i] > 0)
    return found


def trained(
    model: Arrays,
    x: np.ndarray,
    label: np.ndarray,
    steps: int,
    batch: int,
    rate: float,
    momentum: float,
    random: np.random.Generator,
) -> Arrays:
    """The model after steps of SGD with momentum on batches that are drawn with replacement.

    Args:
      model, x, label: as for `loss`; nothing of them is changed.
      steps, batch: how many, and of how many examples each.
      rate, momentum: of SGD; the momentum begins at 0.
      random: draws the batches.
    """
    model = dict(model)
    trace = {name: np.zeros_like(array) for name, array in model.items()}
    for _ in range(steps):
        rows = random.integers(len(x), size=batch)
        for name, array in gradient(model, x[rows], label[rows]).items():
            trace[name] = momentum * trace[name] + array
            model[name] = (model[name] - rate * trace[name]).astype(np.float32)
    return model
