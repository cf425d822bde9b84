"""FedJAX's own federated averaging. Prints one JSON line.

python -m venv v && v/bin/pip install fedjax==0.0.17 jax==0.4.35 jaxlib==0.4.35 dm-haiku==0.0.13
v/bin/python experiments/benchmarks/peers/fedjax_fedavg.py --model=mlp --clients=30
"""

import argparse
import json
import resource
import time
from importlib import metadata

import fedjax
import haiku as hk
import jax
import numpy as np

STEPS, BATCH = 15, 32


def forward(model):
    def mlp(batch):
        return hk.nets.MLP((32, 16, 10))(batch["x"])

    def cnn2(batch):
        x = batch["x"].reshape(-1, 28, 28, 1)
        for _ in range(2):
            x = hk.Conv2D(6, 5, padding="VALID")(x)
            x = jax.nn.relu(hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"))
        return hk.nets.MLP((50, 10))(x.reshape(x.shape[0], -1))

    return {"mlp": mlp, "cnn2": cnn2}[model]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mlp", choices=["mlp", "cnn2"])
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    example = {"x": np.zeros((1, 784), np.float32), "y": np.zeros(1, np.int32)}
    model = fedjax.create_model_from_haiku(
        hk.transform(forward(args.model)),
        example,
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits),
        eval_metrics={},
    )
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(0.01, 0.5),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
            batch_size=BATCH, num_steps=STEPS, num_epochs=None, drop_remainder=True
        ),
    )
    random = np.random.default_rng(0)
    own = STEPS * BATCH
    x = random.random((125, own, 784), np.float32)
    y = random.integers(0, 10, (125, own)).astype(np.int32)
    clients = [
        (b"%d" % k, fedjax.ClientDataset({"x": x[k % 125], "y": y[k % 125]}), jax.random.PRNGKey(k))
        for k in range(args.clients)
    ]
    state = algorithm.init(model.init(jax.random.PRNGKey(0)))
    seconds = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    version = f"fedjax {metadata.version('fedjax')}, jax {jax.__version__}"
    found = {"peer": "FedJAX", "version": version, "peak_mb": peak}
    print(json.dumps({**found, "seconds_per_round": seconds[1:]}))


if __name__ == "__main__":
    main()
