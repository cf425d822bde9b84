"""The server: Flower's FedAvg as it is, and the model in a file at the end."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run."""
    run = context.run_config
    clients = int(run["clients"])
    with np.load(str(run["start"])) as start:
        arrays = ArrayRecord({name: Array(start[name]) for name in start.files})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    result = strategy.start(grid, arrays, num_rounds=int(run["rounds"]))
    with open(str(run["out"]), "wb") as out:
        np.savez(out, **{name: array.numpy() for name, array in result.arrays.items()})
