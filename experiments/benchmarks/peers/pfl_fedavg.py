"""pfl-research's federated averaging (simulated backend, a PyTorch model). Prints one JSON line.

python -m venv v && v/bin/pip install pfl==0.6.0 torch==2.13.0
v/bin/python experiments/benchmarks/peers/pfl_fedavg.py --model=mlp --clients=30
"""

import itertools
import json
import resource
import time

import pfl
import torch
import torch_eager
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.net = torch_eager.network(model)

    def forward(self, x):
        return self.net(x)

    def loss(self, x, y, eval=False):
        return functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x, y, eval=False):
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


class Clock(TrainingProcessCallback):
    def __init__(self):
        self.stamps = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.stamps.append(time.perf_counter())
        return False, Metrics()


def main():
    args = torch_eager.parsed()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    own, users = args.own, torch_eager.users_of(args.own)
    pool, labels = (part.split(own) for part in torch_eager.examples(args.model, users * own))

    def user(number):
        return Dataset(raw_data=[pool[number % users], labels[number % users]], user_id=str(number))

    turn = itertools.cycle(range(args.clients))
    data = FederatedDataset(user, lambda: next(turn))
    net, clock = Net(args.model), Clock()
    model = PyTorchModel(
        net,
        lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=args.momentum),
        torch.optim.SGD(net.parameters(), lr=1.0),
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=args.rounds + 1,
            evaluation_frequency=10**9,
            train_cohort_size=args.clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=args.steps * args.batch // own,
            local_learning_rate=0.01,
            local_batch_size=args.batch,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[clock],
    )
    seconds = [after - before for before, after in itertools.pairwise(clock.stamps)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    version = f"pfl {pfl.__version__}, torch {torch.__version__}"
    print(
        json.dumps(
            {"peer": "pfl-research", "version": version, "peak_mb": peak, "seconds_per_round": seconds}
        )
    )


if __name__ == "__main__":
    main()
