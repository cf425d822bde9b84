"""A client: trains on its own examples, a .npz file that the SuperNode is told of, and sends all."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedavg_numpy import network

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """The trained model as float32 arrays."""
    run = context.run_config
    arrays = message.content.array_records["arrays"]
    model = {name: array.numpy() for name, array in arrays.items()}
    with np.load(str(context.node_config["data"])) as data:
        x, label = data["x"], data["label"]
    steps, batch = int(run["steps"]), int(run["batch"])
    rates = float(run["rate"]), float(run["momentum"])
    found = network.trained(model, x, label, steps, batch, *rates, np.random.default_rng())
    content = {
        "arrays": ArrayRecord({name: Array(array) for name, array in found.items()}),
        "metrics": MetricRecord({"num-examples": len(x)}),
    }
    return Message(content=RecordDict(content), reply_to=message)
