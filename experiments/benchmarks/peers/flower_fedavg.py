"""Federated averaging in Flower's simulation (Ray, a PyTorch model). Prints one JSON line.

python -m venv v && v/bin/pip install 'flwr[simulation]==1.41.0' torch==2.13.0
v/bin/python experiments/benchmarks/peers/flower_fedavg.py --model=mlp --clients=30

Actors of Ray inherit the core that the process is pinned to: one actor on one core. A round is what lies
between the ends of two aggregations, so that starting Ray does not count.
"""

import functools
import itertools
import json
import os
import time
from pathlib import Path

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")
# Actors import this file by its name: sent by value, it would have no cache from one message to the next.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)

import flwr
import torch
import torch_eager
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn import functional

client, server = ClientApp(), ServerApp()
stamps: list[float] = []
peaks: list[float] = []


def megabytes() -> float:
    """The most memory of this process and of all that it has started, each at its own time (Linux)."""
    status = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        except OSError:  # it ended meanwhile
            continue
        status[int(path.parent.name)] = int(lines["PPid"]), float(lines.get("VmHWM", "0 kB").split()[0])
    mine, found = {os.getpid()}, 0
    while len(mine) > found:
        found = len(mine)
        mine |= {number for number, (parent, _) in status.items() if parent in mine}
    return sum(status[number][1] for number in mine if number in status) / 1e3


class Clock(FedAvg):
    """Notes when each aggregation ends."""

    def aggregate_train(self, server_round, replies):
        found = super().aggregate_train(server_round, replies)
        stamps.append(time.perf_counter())
        return found


@functools.cache
def asked():
    """The command line; actors have it from the environment."""
    return torch_eager.parsed(given=json.loads(os.environ["PEER_ARGUMENTS"]))


@functools.cache
def kept():
    """(network, inputs and labels of all users, in batches); once in each process."""
    torch.set_num_threads(1)
    args = asked()
    users = torch_eager.users_of(args.own)
    each = (users, args.own // args.batch, args.batch)
    pool, marks = torch_eager.examples(args.model, users * args.own)
    batches = pool.reshape(*each, *pool.shape[1:]), marks.reshape(*each, *marks.shape[1:])
    return torch_eager.network(args.model), *batches


@client.train()
def train(message, context):
    """A client's steps from the model of the message."""
    args, (net, pool, marks) = asked(), kept()
    user = int(context.node_config["partition-id"]) % len(pool)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=args.momentum)
    for step in range(args.steps):
        turn = step % pool.shape[1]
        optimizer.zero_grad()
        functional.cross_entropy(net(pool[user, turn]), marks[user, turn]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": args.own})
    content = {"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@server.main()
def serve(grid, context):
    """All rounds; nobody evaluates."""
    args = asked()
    torch.manual_seed(0)
    start = ArrayRecord(torch_eager.network(args.model).state_dict())
    number = args.clients
    rule = Clock(1.0, 0.0, min_train_nodes=number, min_evaluate_nodes=0, min_available_nodes=number)
    rule.start(grid, start, num_rounds=args.rounds + 1)
    peaks.append(megabytes())


def main():
    args = torch_eager.parsed()
    os.environ["PEER_ARGUMENTS"] = json.dumps([f"--{name}={value}" for name, value in vars(args).items()])
    import flower_fedavg  # this file, so that what actors unpickle names a module  # noqa: PLC0415

    actors = {"client_resources": {"num_cpus": 1, "num_gpus": 0}, "init_args": {"num_cpus": 1}}
    run_simulation(flower_fedavg.server, flower_fedavg.client, args.clients, backend_config=actors)
    seconds = [after - before for before, after in itertools.pairwise(flower_fedavg.stamps)]
    found = {"peer": "Flower simulation", "version": f"flwr {flwr.__version__}, torch {torch.__version__}"}
    print(json.dumps({**found, "peak_mb": flower_fedavg.peaks[0], "seconds_per_round": seconds}))


if __name__ == "__main__":
    main()
