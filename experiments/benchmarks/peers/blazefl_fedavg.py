"""BlazeFL's federated averaging, one client after another in its own trainer. Prints one JSON line.

python3.12 -m venv v3 && v3/bin/pip install blazefl==2.0.3 torch==2.14.1 tqdm numpy
v3/bin/python experiments/benchmarks/peers/blazefl_fedavg.py --model=blazefl_cifar10 --clients=100
"""

import json
import resource
import time
from importlib.metadata import version

import torch
import torch_eager
from blazefl.contrib.fedavg import FedAvgBaseClientTrainer, FedAvgBaseServerHandler
from torch.utils.data import DataLoader, TensorDataset


class Selector:
    """Which network a name stands for."""

    def select_model(self, model_name):
        return torch_eager.network(model_name)


class Examples:
    """Random examples of every client; some have their own."""

    def __init__(self, model, own):
        self._users = torch_eager.users_of(own)
        pool, labels = torch_eager.examples(model, self._users * own)
        parts = zip(pool.split(own), labels.split(own), strict=True)
        self._parts = [TensorDataset(*part) for part in parts]

    def get_dataloader(self, type_, cid, batch_size=None, generator=None):
        part = self._parts[cid % self._users]
        return DataLoader(part, batch_size=batch_size, shuffle=True, generator=generator)


def main():
    args = torch_eager.parsed("blazefl_cifar10")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = Examples(args.model, args.own)
    common = {"model_selector": Selector(), "model_name": args.model, "dataset": data, "device": "cpu"}
    common |= {"num_clients": args.clients, "batch_size": args.batch, "seed": 0}
    server = FedAvgBaseServerHandler(**common, global_round=args.rounds + 1, sample_ratio=1.0)
    trainer = FedAvgBaseClientTrainer(**common, epochs=args.steps * args.batch // args.own, lr=0.01)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.01, momentum=args.momentum)
    seconds = []
    while not server.if_stop():
        start = time.perf_counter()
        trainer.local_process(server.downlink_package(), server.sample_clients())
        for package in trainer.uplink_package():
            server.load(package)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    versions = f"blazefl {version('blazefl')}, torch {torch.__version__}"
    found = {"peer": "BlazeFL", "version": versions, "peak_mb": peak, "seconds_per_round": seconds[1:]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
