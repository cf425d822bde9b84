"""Everything that wants to be measured on a GPU or TPU, as one command that ends within its minutes.

  python -m experiments.benchmarks.accelerator --minutes=9 --output=accelerator.json

In this order: what the device can do (copies, multiplications, random words); rounds of W1, W2, CNN3, of a
thousand clients and of a Transformer, with the part of the round in which the device idles; 1e8 coordinates
through each mechanism beside the speed of memory; whether the device decodes to the bit what a CPU decodes;
and which operations the rounds of W1 spend their time on. What fails (not enough memory, for instance) is
named, and the rest goes on; what there was no time for is named too. The file is written after every line.
"""

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cepam_jax import mechanisms, wire
from cepam_jax.errors import ConfigError
from cepam_jax.run.devices import CLIENTS, Layout
from configs import shakespeare
from experiments import cli
from experiments.benchmarks import profile, quantizer, workloads
from experiments.benchmarks.sweeps import arrangement
from experiments.tables import markdown
from experiments.timing import interleaved

MECHANISMS = ["lrsuq_gaussian_z1", "lrsuq_gaussian_e8", "rotated_d4", "rotated_e8", "split_z1"]
MECHANISMS += ["lrsuq_laplace_z1", "sdq_z1", "clipped_stochastic", "noise_gaussian"]


def define_flags():
    flags.DEFINE_float("minutes", 9.0, "No measurement begins later than that.")
    flags.DEFINE_integer("size", 100_000_000, "Coordinates through each mechanism; halved until they fit.")
    flags.DEFINE_integer("decoded", 1_000_000, "Coordinates that are decoded on both devices.")
    flags.DEFINE_integer("matrix", 8192, "Rows of the multiplied matrices.")
    flags.DEFINE_list("mechanisms", MECHANISMS, "Names of the registry.")
    flags.DEFINE_list("models", ["mlp", "cnn2", "cnn3"], "Workloads with 30 clients.")
    flags.DEFINE_integer("clients", 30, "Clients of a round.")
    flags.DEFINE_integer("many", 1000, "Clients of the large round of W1; 0: none.")
    flags.DEFINE_integer("steps", 15, "Local steps.")
    flags.DEFINE_integer("repeats", 5, "Repetitions; the median counts.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file, after every line.")


def ceilings() -> list[dict]:
    """Bytes, products and random words a second of this device."""
    f = flags.FLAGS
    a = jnp.ones((f.matrix, f.matrix), jnp.float32)
    calls = dict(quantizer.ceilings(f.size))
    for precision in ("default", "highest"):
        product = jax.jit(lambda x, p=precision: jnp.matmul(x, x, precision=p))
        calls["matmul", precision] = lambda product=product: product(a)
    half = a.astype(jnp.bfloat16)
    halves = jax.jit(lambda x: x @ x)
    calls["matmul", "bfloat16"] = lambda: halves(half)
    found = interleaved(calls, f.repeats)
    rows = [
        {"what": "copy", "unit": "GB/s", "value": 8e-9 * f.size / found["copy", "fused"]},
        {"what": "random words", "unit": "Gbit/s", "value": 32e-9 * f.size / found["words", "fused"]},
    ]
    for kind in ("default", "highest", "bfloat16"):
        speed = 2e-12 * f.matrix**3 / found["matmul", kind]
        rows.append({"what": f"matmul, {kind}", "unit": "Tflop/s", "value": speed})
    return rows


def idle(call, rounds: int = 3) -> float | None:
    """The part of the rounds' time in which no operation runs on the device; None where no trace says so."""
    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(scratch):
            for _ in range(rounds):
                jax.block_until_ready(call())
        traces = sorted(Path(scratch).rglob("*.xplane.pb"))
        if not traces:
            return None
        spans = device_spans(jax.profiler.ProfileData.from_file(str(traces[-1])).planes)
    return idle_of(spans)


def idle_of(spans: list[tuple[float, float]]) -> float | None:
    """The part of the time from the first start to the last end that no span covers; None without spans."""
    if not spans:
        return None
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / (end - spans[0][0])


def device_spans(planes) -> list[tuple[float, float]]:
    """Start and end in ns of all operations on devices that are no CPU, in order."""
    return sorted(
        (event.start_ns, event.start_ns + event.duration_ns)
        for plane in planes
        if plane.name.startswith("/device:") and "CPU" not in plane.name
        for line in plane.lines
        if line.name.startswith(("XLA Ops", "Stream"))
        for event in line.events
    )


def rounds_of(model: str, clients: int) -> list[dict]:
    """Seconds of a workload's round with each mechanism, and over FedAvg's."""
    f = flags.FLAGS
    per_chunk = 1 if jax.default_backend() == "cpu" else min(clients, 100)
    calls = {
        name: workloads.round_call(model, mechanism, clients, f.steps, per_chunk)
        for name, mechanism in workloads.MECHANISMS.items()
    }
    found = interleaved(calls, f.repeats)
    return [
        {
            "what": f"{model}, {clients} clients, {name}",
            "unit": "ms",
            "value": 1e3 * seconds,
            "over fedavg": seconds / found["fedavg"],
            "idle": idle(calls[name]),
        }
        for name, seconds in found.items()
    ]


def transformer() -> list[dict]:
    """Seconds of a round of the small Transformer on the embedded text."""
    calls = {}
    for variant in ("fedavg", "cepam_gaussian"):
        config = shakespeare.get_config(variant)
        config.update_from_flattened_dict({"rounds": 2, "eval_every": 2, "local.steps": flags.FLAGS.steps})
        calls[variant] = arrangement(config, 1, Layout(CLIENTS, 1))
    found = interleaved(calls, flags.FLAGS.repeats)
    return [
        {
            "what": f"transformer_tiny, 10 speakers, {name}, a round and half an evaluation",
            "unit": "ms",
            "value": 500 * seconds,
            "over fedavg": seconds / found["fedavg"],
        }
        for name, seconds in found.items()
    ]


def coordinates(name: str) -> list[dict]:
    """Encode, decode and both of one mechanism on `--size` coordinates, or on fewer where they do not fit."""
    size = flags.FLAGS.size
    while True:
        try:
            times = quantizer.measure(size, flags.FLAGS.repeats, [name])
            break
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size < 1000:
                raise
            size //= 2
    copy, words = times["copy", "fused"], times["words", "fused"]
    drawn = quantizer.words_per_coordinate(mechanisms.make(name))
    return [
        {
            "what": f"{name}, {step}, {size:,} coordinates",
            "unit": "million/s",
            "value": size / times[name, step] / 1e6,
            "of memory": copy / times[name, step],
            "of random words": drawn * words / times[name, step] if drawn else None,
        }
        for step in ("encode", "decode", "fused")
    ]


def decoded_alike(name: str) -> list[dict]:
    """Whether device and CPU decode one message to the same bits, also by way of its bytes."""
    keys = mechanisms.Keys(jax.random.key(1), jax.random.key(2))
    knobs = mechanisms.Knobs(sigma=0.01, step=0.01, bits=4.0, levels=16.0, fraction=0.25)
    mechanism = mechanisms.make(name)
    x = 0.005 * np.random.default_rng(0).normal(size=flags.FLAGS.decoded).astype(np.float32)
    message = jax.jit(mechanism.encode)(keys, x, knobs)
    here = np.asarray(jax.jit(mechanism.decode)(keys.shared, message, knobs))
    sent = wire.pack(message, mechanism, keys.shared, knobs)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        shared = jax.random.key(1)
        read = wire.unpack(sent, mechanism, shared, knobs, len(x))
        there = np.asarray(jax.jit(mechanism.decode)(shared, read, knobs))
    different = int(np.count_nonzero(here.view(np.int32) != there.view(np.int32)))
    return [{"what": f"{name}: floats that a CPU decodes differently", "unit": "of all", "value": different}]


def spent(model: str, mechanism: str) -> list[dict]:
    """The operations on which a workload's round spends most of its time."""
    f = flags.FLAGS
    per_chunk = 1 if jax.default_backend() == "cpu" else f.clients
    function, arguments, _ = workloads.one_round(
        model, workloads.MECHANISMS[mechanism], f.clients, f.steps, per_chunk
    )
    return [
        {
            "what": f"{model}, {mechanism}: {row['operation']} ({row['from'][-50:]})",
            "unit": "% of the traced time",
            "value": 100 * row["share"],
        }
        for row in profile.measured(function, arguments, 1)[:8]
    ]


def stages() -> list[tuple[str, object]]:
    """(name, function) of all that is measured, in order."""
    f = flags.FLAGS
    found = [("ceilings", ceilings)]
    found += [(f"rounds of {model}", lambda model=model: rounds_of(model, f.clients)) for model in f.models]
    if f.many:
        found.append((f"{f.many} clients", lambda: rounds_of("mlp", f.many)))
    found.append(("transformer", transformer))
    found += [(f"coordinates, {name}", lambda name=name: coordinates(name)) for name in f.mechanisms]
    found += [(f"decode, {name}", lambda name=name: decoded_alike(name)) for name in f.mechanisms]
    found.append(("profile", lambda: spent("mlp", "cepam Z1")))
    return found


def text(row: dict) -> list[str]:
    """One line of the table."""
    more = []
    for key in ("over fedavg", "idle", "of memory", "of random words"):
        if row.get(key) is not None:
            more.append(f"{row[key]:.2f} {key}")
    return [row["what"], f"{row['value']:.4g} {row['unit']}", ", ".join(more)]


def collect(todo, minutes: float, output: str) -> dict:
    """Measures one stage after the other, and keeps what was found after each.

    Args:
      todo: (name, function) of the stages; a function gives rows.
      minutes: no stage begins later than that.
      output: file for the figures; empty: none.

    Returns:
      What the file has: rows, errors of stages that failed, names of those that there was no time for.
    """
    device, begin = jax.devices()[0], time.monotonic()
    found = {"device": device.device_kind, "backend": jax.default_backend(), "machine": platform.machine()}
    found |= {"jax": jax.__version__, "rows": [], "failed": {}, "no time": [], "seconds": 0.0}
    for name, stage in todo:
        if found["seconds"] > 60 * minutes:
            found["no time"].append(name)
        else:
            try:
                rows = stage()
            except Exception as error:  # whatever it is: the other measurements must go on
                first = (str(error).splitlines() or [""])[0]
                found["failed"][name] = f"{type(error).__name__}: {first[:200]}"
                rows = []
            found["rows"] += rows
            for row in rows:
                print(" | ".join(text(row)), flush=True)
        found["seconds"] = time.monotonic() - begin
        if output:
            Path(output).write_text(json.dumps(found, indent=2) + "\n")
    return found


def main():
    f = flags.FLAGS
    if f.minutes <= 0:
        raise ConfigError(f"--minutes is {f.minutes}; it must be positive")
    for name in f.mechanisms:
        mechanisms.REGISTRY.get_or_raise(name)
    cli.choices("models", workloads.SHAPES)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    found = collect(stages(), f.minutes, f.output)
    print("\n" + markdown(["measured", "value", "beside"], [text(row) for row in found["rows"]]) + "\n")
    for name, error in found["failed"].items():
        print(f"{name} failed: {error}")
    for name in found["no time"]:
        print(f"no time for: {name}")
    print(f"{found['seconds']:.0f} seconds")
    if found["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, define_flags)
