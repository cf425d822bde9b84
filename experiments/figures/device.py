"""A model for the device: size of the file against accuracy, and the time that one example takes.

  python -m experiments.figures.device --workdir=/tmp/device

Every model is trained, exported at several settings, and judged by the exported file, in onnxruntime or by
JAX. A packed file is read back and turned into ONNX first. Sizes are those of the files: header, graph and
steps count. They are compared with four bytes for each parameter. Times are medians of calls that take turns,
on one core.
"""

from pathlib import Path

from matplotlib.figure import Figure

from cepam_jax.export import formats, loader, predictor
from cepam_jax.export.quantize import Setting
from cepam_jax.run import finished, training
from configs import cifar10, digits, mnist, shakespeare
from experiments import cli, exported, output, timing
from experiments.paired import verdict
from experiments.plots import style
from experiments.tables import markdown

RATES = (1.6, 2.0, 2.4, 2.9, 3.4, 4.0)
CHOSEN = 2.4  # the same for all models
REFINED = "packed, by rate, refined"  # of models that write; the others have nothing to be refined by
STEPS = 200
BITS = (8, 4, 3, 2)
PRUNED = (0.3, 0.5)
GOAL, LOSS = 10.0, 0.5  # times smaller; points of accuracy lost at most


def _one_place(config, steps: int, rounds: int):
    """The configuration with one client, which has all data: a training in one place, by Adam."""
    config.update_from_flattened_dict(
        {
            "num_clients": 1,
            "partition.kind": "iid",
            "clients_per_round": 1,
            "evaluation.clients": "none",
            "local.optimizer": "adam",
            "local.momentum": 0.0,
            "local.learning_rate": 1e-3,
            "local.steps": steps,
            "rounds": rounds,
            "eval_every": max(1, rounds // 4),
        }
    )
    return config


def _federated(config, model: str, rounds: int):
    config.update_from_flattened_dict({"model": model, "rounds": rounds, "eval_every": max(1, rounds // 4)})
    return config


def config_of(model: str):
    """What is trained: MNIST over 30 clients by FedAvg, CIFAR-10 and the text in one place."""
    if model in ("mlp", "cnn2"):
        return _federated(mnist.get_config("fedavg"), model, 20)
    if model == "cnn3":
        config = cifar10.get_config("fedavg")
        config.model = model
        return _one_place(config, 300, 4)
    if model == "transformer_tiny":
        config = shakespeare.get_config("fedavg")
        config.model, config.local.batch_size = model, 32
        return _one_place(config, 250, 8)
    return _federated(digits.get_config("fedavg"), "mlp", 20)


def settings_of(kind: str) -> list[Setting]:
    """The settings of a line of the figure."""
    if kind in ("packed, by rate", REFINED):
        return [Setting(rate=rate, refine=STEPS * (kind == REFINED)) for rate in RATES]
    if kind == "packed, pruned, 4 bits":
        return [Setting(4, prune=share) for share in PRUNED]
    # A code of three bits takes four in these, and one of two bits in ONNX.
    return [Setting(bits) for bits in (BITS if kind.startswith("packed") else (8, 4))]


KINDS = {
    "packed, by rate": "packed",
    REFINED: "packed",
    "packed, 8 to 2 bits": "packed",
    "packed, pruned, 4 bits": "packed",
    "onnx, 8 and 4 bits": "onnx",
    "jax, 8 and 4 bits": "jax",
}


def measure(model: str, run: finished.Finished) -> list[dict]:
    """A row for each file of a model; the first is float32 in ONNX."""
    trained = predictor.predictor(run.config, run.data, run.model)
    made = formats.exporter(trained)

    def row(kind, setting, data, name):
        found = exported.metrics(run, trained, exported.opened(data, name))
        size = {"bytes": len(data), "smaller": made.float32_bytes / len(data)}
        return {"model": model, "kind": kind, **setting, **size, **found}

    rows = [row("float32", {}, formats.float32(made), "onnx")]
    for kind, name in KINDS.items():
        if kind == REFINED and trained.head.samples is None:
            continue
        for setting in settings_of(kind):
            rows.append(row(kind, setting._asdict(), formats.export(made, setting, name), name))
    return rows


def seconds(model: str, run: finished.Finished, repeats: int) -> dict:
    """Medians of one example's time with each file."""
    made = formats.exporter(predictor.predictor(run.config, run.data, run.model))
    inputs = made.predictor.head.inputs_of({name: array[:1] for name, array in run.data.test.items()})
    eight, four = (formats.export(made, Setting(bits), "onnx") for bits in (8, 4))
    packed = loader.to_onnx(*loader.read(formats.export(made, Setting(rate=CHOSEN), "packed")))
    sessions = {
        "float32": exported.session(formats.float32(made)),
        f"packed, rate {CHOSEN}": exported.session(packed),
        "8 bits, folded": exported.session(eight),
        "4 bits, folded": exported.session(four),
        "8 bits": exported.session(eight, folded=False),
        "4 bits": exported.session(four, folded=False),
    }
    calls = {name: (lambda call=call: call(inputs)) for name, call in sessions.items()}
    return {"model": model, **timing.interleaved(calls, repeats)}


def claims_of(rows: list[dict]) -> list[output.Claim]:
    """Whether each model is ten times smaller at half a point, with one rate for all of them.

    A single model of each kind shows whether it is met there; for models of that kind nothing is tested.
    """
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        whole = mine[0]
        # The refined one, where there is one.
        chosen = max((row for row in mine if row.get("rate") == CHOSEN), key=lambda row: row["refine"])
        lost = 100 * (whole["accuracy"] - chosen["accuracy"])
        refined = f" --refine={chosen['refine']}" if chosen["refine"] else ""
        met = chosen["smaller"] >= GOAL and lost <= LOSS
        found.append(
            output.Claim(
                "this project",
                f"{model}: at least {GOAL:g} times smaller than float32, at most {LOSS:g} points lost",
                f"{chosen['bytes']:,} bytes, {chosen['smaller']:.1f} times; {lost:+.2f} points lost, loss "
                f"{chosen['loss'] - whole['loss']:+.4f} nats: {'met' if met else 'missed'} by 1 model",
                verdict(met, 1),
                f"the packed file of --rate={CHOSEN}{refined}, all test examples; rate and steps of refining "
                "were chosen on these models and examples",
                "none: nothing is sent to a server",
            )
        )
    return found


def plot(rows: list[dict]) -> Figure:
    """Points lost against how many times smaller, a panel for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = min(2, len(models))
    figure = Figure(figsize=(5.2 * columns, 3.9 * -(-len(models) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(models) // columns), columns, squeeze=False).ravel()
    for axes, model in zip(panels, models, strict=False):
        mine = [row for row in rows if row["model"] == model]
        for number, kind in enumerate(KINDS):
            line = [row for row in mine if row["kind"] == kind]
            if not line:
                continue
            lost = [100 * (mine[0]["accuracy"] - row["accuracy"]) for row in line]
            axes.plot([row["smaller"] for row in line], lost, label=kind, **style(number))
        axes.axvline(GOAL, color="grey", linewidth=0.8)
        axes.axhline(LOSS, color="grey", linewidth=0.8)
        axes.set(title=f"{model}: {mine[0]['accuracy']:.3f} at float32", xscale="log", ylim=(5.2, -0.7))
        axes.set_xticks([1, 2, 4, 8, 10, 16, 32], ["1", "2", "4", "8", "", "16", "32"], minor=False)
        axes.minorticks_off()
        axes.set(xlabel="times smaller than float32", ylabel="points of accuracy lost")
    for axes in panels[len(models) :]:
        axes.remove()
    lines = {}
    for axes in panels[: len(models)]:
        lines |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    panels[0].legend(lines.values(), lines, fontsize="small", loc="lower left")
    return figure


def tables(rows: list[dict], times: list[dict]) -> str:
    """Sizes and accuracies, then times."""
    lines = []
    for row in rows:
        asked = f"rate {row['rate']:g}" if row.get("rate") else f"{row['bits']} bits" if "bits" in row else ""
        pruned = f", {row['prune']:.0%} pruned" if row.get("prune") else ""
        refined = f", {row['refine']} steps" if row.get("refine") else ""
        kind = row["kind"].split(",")[0]
        cells = [f"{row['bytes']:,}", f"{row['smaller']:.1f}", f"{row['accuracy']:.4f}", f"{row['loss']:.4f}"]
        lines.append([row["model"], kind, asked + pruned + refined, *cells])
    text = markdown(["model", "file", "setting", "bytes", "times smaller", "accuracy", "loss"], lines)
    names = list(times[0])[1:]
    clock = [[line["model"], *(f"{1e6 * line[name]:.0f}" for name in names)] for line in times]
    return text + "\n\nMicroseconds of one example:\n\n" + markdown(["model", *names], clock)


def main():
    f = cli.flags.FLAGS
    cli.choices("models", MODELS)
    exported.need_runtime()
    workdir, rows, times = Path(f.workdir), [], []
    for model in f.models:
        config = config_of(model)
        config.data.dir = f.data_dir
        if f.rounds:
            config.rounds = config.eval_every = f.rounds
        training.train(config, workdir / "runs" / model, f.progress)
        run = finished.load(workdir / "runs" / model)
        rows += measure(model, run)
        times.append(seconds(model, run, f.repeats))
    output.save(tables(rows, times), [*rows, *times], plot(rows), claims_of(rows))


MODELS = ("mlp", "cnn2", "cnn3", "transformer_tiny", "digits")


def define_flags():
    output.define_workdir()
    cli.flags.DEFINE_list("models", list(MODELS[:-1]), f"Of {', '.join(MODELS)}.")
    cli.flags.DEFINE_string("data_dir", "", "Where TFDS keeps data; by default as config.data.dir says.")
    cli.flags.DEFINE_integer("rounds", 0, "Rounds of each run; 0: as each model needs.")
    cli.flags.DEFINE_integer("repeats", 2000, "Turns of the times.", lower_bound=1)
    cli.flags.DEFINE_bool("progress", True, "Show progress bars.")


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"models": ["digits"], "rounds": 4, "repeats": 5})
