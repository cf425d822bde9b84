"""FedAvg in eager PyTorch, one client after another. Prints one JSON line.

python -m venv v && v/bin/pip install torch==2.13.0 numpy
v/bin/python experiments/benchmarks/peers/torch_eager.py --model=mlp --clients=30
"""

import argparse
import json
import resource
import time

import torch
from torch import nn
from torch.nn import functional

STEPS, BATCH = 15, 32


def network(model):
    if model == "mlp":
        widths = (784, 32, 16, 10)
        layers = [part for i in range(3) for part in (nn.Linear(*widths[i : i + 2]), nn.ReLU())]
        return nn.Sequential(*layers[:-1])
    convolution = [nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 6, 5), nn.MaxPool2d(2)]
    head = [nn.ReLU(), nn.Flatten(), nn.Linear(96, 50), nn.ReLU(), nn.Linear(50, 10)]
    return nn.Sequential(nn.Unflatten(1, (1, 28)), *convolution, *head)


def images(model, number):
    return torch.rand(number, 784) if model == "mlp" else torch.rand(number, 28, 28)


def one_round(net, start, batches, labels):
    total = {name: torch.zeros_like(value) for name, value in start.items()}
    for of_client, labels_of_client in zip(batches, labels):  # noqa: B905  for older Python too
        net.load_state_dict(start)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.5)
        for x, y in zip(of_client, labels_of_client):  # noqa: B905
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        for name, value in net.state_dict().items():
            total[name] += value
    return {name: value / len(batches) for name, value in total.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mlp", choices=["mlp", "cnn2"])
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = network(args.model)
    pool = images(args.model, 125 * STEPS * BATCH)
    marks = torch.randint(0, 10, (len(pool),))
    batches = [pool.reshape(125, STEPS, BATCH, *pool.shape[1:])[k % 125] for k in range(args.clients)]
    labels = [marks.reshape(125, STEPS, BATCH)[k % 125] for k in range(args.clients)]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    seconds = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        state = one_round(net, state, batches, labels)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    found = {"peer": "PyTorch eager", "version": f"torch {torch.__version__}", "peak_mb": peak}
    print(json.dumps({**found, "seconds_per_round": seconds[1:]}))


if __name__ == "__main__":
    main()
