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

MODELS = ("mlp", "cnn2", "transformer", "pfl_cifar10", "blazefl_cifar10")
EXAMPLES = 2000  # at least one client's; clients share them


class Block(nn.Module):
    """Causal attention and two dense layers, norms first, as of `cepam_jax.models.transformer`."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.parts = nn.ModuleList([nn.Linear(width, width) for _ in range(4)])
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.norms[0](x)
        query, key, value = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.parts[:3]
        )
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.parts[3](y.transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.widen(self.norms[1](x)), approximate="tanh"))


class Transformer(nn.Module):
    """2 layers of width 64 with 4 heads; the embedding also reads out."""

    def __init__(self, vocabulary=65, context=64, layers=2, width=64, heads=4):
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.characters.weight, std=0.02)

    def forward(self, x):
        x = self.blocks(self.characters(x) + self.positions)
        # [batch, vocabulary, time], as cross_entropy wants classes.
        return (self.norm(x) @ self.characters.weight.T).transpose(1, 2)


def network(model):
    if model == "transformer":
        return Transformer()
    if model == "pfl_cifar10":  # of pfl-research's benchmark, arXiv 2404.06430
        first = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
        head = [nn.Linear(12544, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
        return nn.Sequential(*first, nn.Dropout(0.25), nn.Flatten(), *head)
    if model == "blazefl_cifar10":  # the network of PyTorch's tutorial on CIFAR-10
        first = [
            nn.Conv2d(3, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
        return nn.Sequential(*first, nn.Flatten(), *head)
    if model == "mlp":
        widths = (784, 32, 16, 10)
        layers = [part for i in range(3) for part in (nn.Linear(*widths[i : i + 2]), nn.ReLU())]
        return nn.Sequential(*layers[:-1])
    convolution = [nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 6, 5), nn.MaxPool2d(2)]
    head = [nn.ReLU(), nn.Flatten(), nn.Linear(96, 50), nn.ReLU(), nn.Linear(50, 10)]
    return nn.Sequential(nn.Unflatten(1, (1, 28)), *convolution, *head)


def examples(model, number):
    """Inputs and labels, random."""
    if model == "transformer":
        return torch.randint(0, 65, (number, 64)), torch.randint(0, 65, (number, 64))
    return images(model, number), torch.randint(0, 10, (number,))


def images(model, number):
    shapes = {"mlp": (784,), "cnn2": (28, 28)}
    return torch.rand(number, *shapes.get(model, (3, 32, 32)))


def users_of(own):
    """Clients with examples of their own; more clients share these."""
    return max(EXAMPLES // own, 1)


def parsed(model="mlp", given=None):
    """The command line of a peer, or what is given in its place."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=model, choices=MODELS)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--own", type=int, default=0, help="examples of a client; 0: all new")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--momentum", type=float, default=0.5)
    args = parser.parse_args(given)
    args.own = args.own or args.steps * args.batch
    return args


def one_round(net, start, batches, labels, momentum=0.5):
    total = {name: torch.zeros_like(value) for name, value in start.items()}
    for of_client, labels_of_client in zip(batches, labels):  # noqa: B905  for older Python too
        net.load_state_dict(start)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=momentum)
        for x, y in zip(of_client, labels_of_client):  # noqa: B905
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        for name, value in net.state_dict().items():
            total[name] += value
    return {name: value / len(batches) for name, value in total.items()}


def main():
    args = parsed()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = network(args.model)
    users = users_of(args.own)
    each = (users, args.own // args.batch, args.batch)
    pool, marks = examples(args.model, users * args.own)
    pool, marks = pool.reshape(*each, *pool.shape[1:]), marks.reshape(*each, *marks.shape[1:])
    turns = [step % each[1] for step in range(args.steps)]  # in passes over a client's examples
    batches = [[pool[k % users][turn] for turn in turns] for k in range(args.clients)]
    labels = [[marks[k % users][turn] for turn in turns] for k in range(args.clients)]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    seconds = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        state = one_round(net, state, batches, labels, args.momentum)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    found = {"peer": "PyTorch eager", "version": f"torch {torch.__version__}", "peak_mb": peak}
    print(json.dumps({**found, "seconds_per_round": seconds[1:]}))


if __name__ == "__main__":
    main()
