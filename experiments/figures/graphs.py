"""Graphs over laboratories and communities: clients alone, FedAvg, all data in one place, and CEPAM.

  python -m experiments.figures.graphs --data=mutag --seeds=10 --data_dir=FOLDER --workdir=/tmp/mutag

Beside the accuracies stand those that FederatedScope-GNN publishes (2204.05562), whose protocol differs in
details: its splits are drawn anew for each of five runs and its settings are the best on validation data, of
three rates and three numbers of local steps; here settings are fixed, no validation data are used, and run s
has fold s of the data. Its Louvain parts are those of another library; edges between parts are lost in both.
PROTEINS has ten clients of random shares here, and its GIN there has batch normalization and width 64.
"Alone" is the mean over clients, each trained for as many steps by itself, on the test graphs or nodes of
all. Accuracies of node classification are within the clients' subgraphs; "whole graph" is with the edges
between clients.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from cepam_jax.data import sources
from cepam_jax.errors import require
from cepam_jax.federated import local
from cepam_jax.run import build, training
from cepam_jax.run.evaluation import make_evaluate
from configs import graphs
from experiments import cli, output
from experiments.output import NO_PRIVACY, SERVER_TRUSTED, Claim
from experiments.paired import (
    FOLDS,
    above,
    all_of,
    any_of,
    below,
    bounds,
    deviation,
    in_points,
    of_folds,
    points,
    spread,
    verdict,
)
from experiments.plots import style
from experiments.runs import mean_of, seeded
from experiments.tables import markdown

# Mean and deviation over its runs, in percent: alone, FedAvg, all data in one place (2204.05562 and its
# documentation, federatedscope.io/docs/graph: GCN by the community splitter; GIN).
PUBLISHED = {
    "cora": {"alone": (65.08, 2.39), "FedAvg": (87.32, 1.49), "central": (86.89, 1.82)},
    "citeseer": {"alone": (67.53, 1.87), "FedAvg": (77.56, 1.45), "central": (77.42, 1.15)},
    "proteins": {"alone": (69.06, 3.47), "FedAvg": (73.74, 5.71), "central": (72.47, 5.53)},
}
MARGIN = 1.0  # points that CEPAM may lose
FEWER = 30  # times fewer bits than float32
MAJORITY = {"mutag": 66.5}
SMOKE = {"data": ["motifs"], "seeds": 2, "rounds": 2, "gammas": ["30"]}


def config_of(data: str, variant: str, fold: int, **changes):
    """configs/graphs.py in a variant, on a fold, with fields changed, evaluated after the last round."""
    config = graphs.get_config(f"{data}-{variant}")
    config.data.dir, config.data.fold = flags.FLAGS.data_dir, fold
    config.rounds = flags.FLAGS.rounds or config.rounds
    config.eval_every = config.rounds
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return seeded(config, fold)


def central_config(data: str, fold: int):
    """One client with everything, edges between communities included; it takes one client's steps."""
    whole = f"{data}_whole" if data in graphs.NODES else data
    return config_of(whole, "fedavg", fold, num_clients=1)


def alone(config) -> dict[str, np.ndarray]:
    """Every client trained by itself for all steps of all rounds.

    Args:
      config: of the federation.

    Returns:
      "all": f64[clients], accuracy of each on all test examples; "own": on its own, where they have owners.
    """
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    split = build.split_of(config, data)
    task = build.program(config, data.specification).task
    steps = config.rounds * config.local.steps
    settings = build.training_of(config)._replace(steps=steps)
    arrays = build.client_arrays(config, split)
    arrays = arrays._replace(
        examples=data.train, constants=data.constants, steps=np.full(config.num_clients, steps, np.int32)
    )
    judged = config.evaluation.clients
    owners, test = build.test_owners(config, data, split), build.tested(data)
    update = local.make_local_update(task, settings)
    evaluate = make_evaluate(task, config.evaluation.batch_size, judged)

    def each(key, arrays, test, owners):
        model = task.initialize(key)
        start, unflatten = ravel_pytree(model.params)

        def one(client):
            client_key = jax.random.fold_in(arrays.training_key, client)
            trained = update.run(model, arrays, client, client_key, None, jnp.int32(0))
            return evaluate(model._replace(params=unflatten(start + trained.update)), test, arrays, owners)

        return jax.lax.map(one, jnp.arange(config.num_clients))

    key = jax.random.key(config.seeds.model)
    found = jax.tree.map(np.asarray, jax.jit(each)(key, arrays, test, owners))
    number = float(len(owners))
    clients = range(config.num_clients)
    sums = [jax.tree.map(lambda a, k=k: a[k], found.test) for k in clients]
    results = {"all": np.array([task.summarize(each, number)["accuracy"] for each in sums])}
    if judged == "test":
        own = [jax.tree.map(lambda a, k=k: a[k, k], found.clients) for k in clients]
        results["own"] = np.array([task.summarize(each, 1.0)["accuracy"] for each in own])
    return results


def measure(data: str, seeds: int, gammas: list[float]) -> list[dict]:
    """One row for each method: accuracies of the seeds, and bits per coordinate."""
    f = flags.FLAGS
    configs = {"FedAvg": [config_of(data, "fedavg", s) for s in range(seeds)]}
    configs["central"] = [central_config(data, s) for s in range(seeds)]
    for gamma in gammas:
        label = f"gamma {gamma:g}"
        configs[label] = [config_of(data, "cepam_gaussian", s, mechanism__gamma=gamma) for s in range(seeds)]
    each = [alone(config) for config in configs["FedAvg"]]
    rows = [{"method": "alone", "accuracy": [float(found["all"].mean()) for found in each]}]
    if "own" in each[0]:
        rows[0]["own"] = [float(found["own"].mean()) for found in each]
    for label, mine in configs.items():
        folders = [Path(f.workdir, "runs", data, label.replace(" ", "_"), f"seed{s}") for s in range(seeds)]
        names = [f"{data} {label} seed {s}" for s in range(seeds)]
        runs = training.train_many(mine, folders, f.progress, names)
        last = [lines[-1] for lines in runs]
        row = {"method": label, "accuracy": [line["accuracy"] for line in last]}
        if "whole_accuracy" in last[0]:
            row["whole"] = [line["whole_accuracy"] for line in last]
        if label.startswith("gamma"):
            row["bits"] = mean_of(runs, "bits_per_coordinate")
            row["bytes_over_bits"] = packed(mine[0], Path(f.workdir, "bytes", data, label.replace(" ", "_")))
        elif label == "FedAvg":
            row["bits"] = 32.0
        rows.append(row)
    return [{"data": data} | row for row in rows]


def packed(config, folder: Path) -> float:
    """Bits of the bytes that a run sends, over their ideal number: five rounds are made again with bytes."""
    config = config.copy_and_resolve_references()
    config.wire, config.rounds = True, min(5, config.rounds)
    config.eval_every = config.rounds
    line = training.train(config, folder, flags.FLAGS.progress, "with bytes")[-1]
    return 8 * line["uplink_bytes"] / line["uplink_bits"]


def share_of(data: str) -> float:
    """Of `bounds`: test over training data of a seed: a tenth of the graphs, or random nodes."""
    if data not in graphs.NODES:
        return FOLDS
    config = config_of(data, "fedavg", 0)
    found = sources.load_examples(data, config.data.dir, sources.options_of(config))
    tested, trained = (int((arrays["labels"] >= 0).sum()) for arrays in (found.test, found.train))
    return tested / trained


def near_published(data: str, row: dict, share: float) -> Claim:
    """Is our mean within one of the published deviations of the published mean? `share` is of `bounds`."""
    mean, around = PUBLISHED[data][row["method"]]
    values = 100 * np.array(row["accuracy"])
    state = all_of([above(values, mean - around, 2, share), below(values, mean + around, 2, share)])
    low, high = bounds(values, 2, share)
    return Claim(
        "2204.05562",
        f"{data}, {row['method']}: {mean:.1f} ± {around:.1f} % (their protocol)",
        f"{values.mean():.1f} ± {deviation(values):.1f} %, the mean from {low:.1f} to {high:.1f}; "
        f"{len(values)} seeds",
        verdict(state, len(values)),
        f"mean within one published deviation; 2 bounds of t tests{of_folds(share)}, together at 5 %",
        NO_PRIVACY,
    )


def claims_of(data: str, rows: list[dict]) -> list[Claim]:
    """What was published, whether joining helps, and what CEPAM costs."""
    share = share_of(data)
    found = {row["method"]: row for row in rows}
    seeds = len(found["FedAvg"]["accuracy"])
    claims = [near_published(data, found[method], share) for method in PUBLISHED.get(data, ())]
    pair = found["FedAvg"]["accuracy"], found["alone"]["accuracy"]
    claims.append(
        Claim(
            "2204.05562" if data in PUBLISHED else "this project",
            f"{data}: FedAvg is better than clients alone",
            f"points gained: {points(*pair)}; {seeds} seeds",
            verdict(above(in_points(*pair), 0.0, share=share), seeds),
            f"a paired t test{of_folds(share)}, at 5 %",
            NO_PRIVACY,
        )
    )
    if data in MAJORITY:
        values = 100 * np.array(found["FedAvg"]["accuracy"])
        claims.append(
            Claim(
                "this project",
                f"{data}: FedAvg is better than the majority class, {MAJORITY[data]} %",
                f"{values.mean():.1f} ± {deviation(values):.1f} %; {seeds} seeds",
                verdict(above(values, MAJORITY[data], share=share), seeds),
                f"a t test{of_folds(share)}, at 5 %",
                NO_PRIVACY,
            )
        )
    noisy = [row for row in rows if row["method"].startswith("gamma")]
    states, said = [], []
    for row in noisy:
        fewer = 32 / (row["bits"] * row["bytes_over_bits"])
        lost = in_points(found["FedAvg"]["accuracy"], row["accuracy"])
        states.append(all_of([below(lost, MARGIN, len(noisy), share), fewer >= FEWER]))
        text = points(found["FedAvg"]["accuracy"], row["accuracy"])
        said.append(f"{row['method']}: {text} points lost at {fewer:.0f} times fewer bits")
    claims.append(
        Claim(
            "this project",
            f"{data}: some gamma loses less than {MARGIN:g} point to FedAvg at {FEWER} times fewer bits",
            f"{'; '.join(said)}; {seeds} seeds",
            verdict(any_of(states), seeds),
            f"{len(noisy)} bounds of paired t tests{of_folds(share)}, together at 5 %; bytes counted",
            SERVER_TRUSTED,
        )
    )
    return claims


def plot(by_data: dict[str, list[dict]]):
    """Accuracy against bits sent; clients alone and all data in one place as lines across."""
    figure = Figure(figsize=(5.5, 3.4 * len(by_data)), layout="constrained")
    panels = figure.subplots(len(by_data), 1, squeeze=False).ravel()
    for axes, (data, rows) in zip(panels, by_data.items(), strict=True):
        for number, row in enumerate(rows):
            mean, error = np.mean(row["accuracy"]), deviation(row["accuracy"]) / np.sqrt(len(row["accuracy"]))
            if "bits" not in row:
                central = row["method"] == "central"
                label = "all data in one place" if central else "clients alone"
                axes.axhline(mean, color="k", linestyle="--" if central else ":", linewidth=1, label=label)
                continue
            sent = row["bits"] * row.get("bytes_over_bits", 1.0)
            look = style(0 if row["method"] == "FedAvg" else 1)
            axes.errorbar(sent, mean, error, capsize=2, **look)
            right = row["method"] == "FedAvg"  # at the edge; the others in turn above and below
            place = {
                "xytext": (-4 if right else 4, -12 if number % 2 else 4),
                "ha": "right" if right else "left",
            }
            axes.annotate(row["method"], (sent, mean), textcoords="offset points", fontsize=8, **place)
        axes.set(
            xscale="log", xlabel="bits per coordinate sent to the server", ylabel=f"test accuracy, {data}"
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def define_flags():
    output.define_workdir()
    flags.DEFINE_list("data", ["motifs"], "Data sets, of motifs, mutag, proteins, nci1, cora, citeseer.")
    flags.DEFINE_string("data_dir", "", "As config.data.dir; holds the graphs, but for motifs.")
    flags.DEFINE_integer("seeds", 5, "Runs of each setting, each on a fold of its own; at most 10.")
    flags.DEFINE_integer("rounds", 0, "Rounds of each run; 0: as the configuration says.")
    flags.DEFINE_list("gammas", ["100", "30", "10"], "Clip norm over sigma.")
    flags.DEFINE_bool("progress", True, "Show progress bars.")


def table_of(rows: list[dict]) -> str:
    """Markdown; points are over FedAvg on the same folds."""
    fedavg = {row["data"]: row for row in rows if row["method"] == "FedAvg"}
    lines = []
    for row in rows:
        published = PUBLISHED.get(row["data"], {}).get(row["method"])
        gained = "" if row["method"] == "FedAvg" else points(row["accuracy"], fedavg[row["data"]]["accuracy"])
        lines.append(
            [
                row["data"],
                row["method"],
                spread(row["accuracy"]),
                gained,
                spread(row["whole"]) if "whole" in row else "",
                spread(row["own"]) if "own" in row else "",
                f"{row['bits']:.4f}" if "bits" in row else "",
                f"{100 * (row['bytes_over_bits'] - 1):+.1f} %" if "bytes_over_bits" in row else "",
                f"{published[0]:.1f} ± {published[1]:.1f}" if published else "",
            ]
        )
    heads = ["data", "method", "test accuracy", "points over FedAvg", "whole graph", "own test nodes"]
    return markdown([*heads, "ideal bits", "bytes over ideal", "published, %"], lines)


def main():
    f = flags.FLAGS
    cli.choices("data", (*graphs.GRAPHS, "cora", "citeseer"))
    require(1 <= f.seeds <= 10, "--seeds", f.seeds, "from 1 to 10, the folds")
    by_data = {data: measure(data, f.seeds, cli.numbers("gammas")) for data in f.data}
    every = [row for rows in by_data.values() for row in rows]
    claims = [claim for data, rows in by_data.items() for claim in claims_of(data, rows)]
    text = f"{f.seeds} seeds, each on a fold of its own (mean ± standard deviation).\n\n"
    output.save(text + table_of(every), every, plot(by_data), claims)


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
