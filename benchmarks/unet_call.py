"""Time one call of an SD 1.5-sized denoiser, and measure how far it is from float32, in several engines and formats.

Builds the bundles on the command line from random weights, takes what the denoiser is given in the first and in a later
step of the fp32 bundle's run, and then calls it in turns, each contender in a process of its own. The rival in 8 bits
is NNCF: the fp32 graph of the OpenVINO bundle, quantized with what some other steps are given (``pip install nncf``).

    make bench-unet
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.build import MODELS, ROOT
from benchmarks.checkpoints import write
from diffc.compiler.metrics import sqnr
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.interpreter import Interpreter
from diffc.runtime.program.program import Graph, Program, Ref
from diffc.runtime.request import make_request

TARGETS = ("ort-fp32", "ov-fp32", "ov-bf16", "ort-w8a8", "ov-w8a8", "ort-w4a8")
RIVAL = "nncf"
SAMPLES = 4
"""How many calls NNCF is shown."""

CALLS = 3
"""Calls in a turn, of which the fastest counts."""

Feeds = Mapping[str, NDArray[Any]]


def build(source: Path, output: Path, target: str, steps: int) -> dict[str, Any]:
    """Build a bundle on the command line; give what it says with ``--json``."""
    diffc = str(Path(sys.executable).with_name("diffc"))
    command = [diffc, "build", str(source), "--target", target, "--steps", str(steps), "-o", str(output), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def most_called(program: Program) -> Graph:
    """Return the graph of the denoiser: the one that a program calls most."""
    return max(program.graphs, key=lambda graph: sum(op.operator == graph.name for op in program.ops))


def denoiser_calls(bundle: Path, steps: tuple[int, ...]) -> list[Feeds]:
    """Run a bundle up to the last of some calls of its denoiser, and give what all of these are given."""
    opened = open_bundle(bundle)
    program = next(iter(opened.programs.values()))
    request = make_request(
        opened.programs, program=None, inputs={"prompt": "a cat"}, num_images=1, seed=0, latents=None
    )
    name = most_called(program).name
    calls = [op for op in program.ops if op.operator == name]
    names = [{port: ref.name for port, ref in calls[step].attrs if isinstance(ref, Ref)} for step in steps]
    before = program.ops[: program.ops.index(calls[max(steps)])]
    values = {value for each in names for value in each.values()}
    values_by_name = Interpreter(opened).run(program, request.chunk(0), request.scalars, ops=before, outputs=values)
    return [{port: values_by_name[value] for port, value in each.items()} for each in names]


def contend(who: str, bundle: Path, feeds: Path) -> None:
    """Call the denoiser of a bundle, or the rival's model, and print seconds and peak memory; save what it gives."""
    arguments = dict(np.load(feeds))
    start = time.monotonic()
    if who == RIVAL:
        import openvino

        compiled = openvino.Core().compile_model(bundle, "CPU")
        request = compiled.create_infer_request()

        def call() -> NDArray[Any]:
            request.infer(arguments)
            return np.array(request.get_output_tensor(0).data)
    else:
        opened = open_bundle(bundle)
        program = next(iter(opened.programs.values()))
        session = Interpreter(opened).session(most_called(program))

        def call() -> NDArray[Any]:
            return np.asarray(session.run(arguments)[0])

    loaded, times = time.monotonic() - start, []
    for _ in range(CALLS):
        start = time.monotonic()
        output = call()
        times.append(time.monotonic() - start)
    np.save(feeds.with_name(f"{who}.npy"), output)
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(json.dumps({"seconds": min(times), "load": loaded, "peak_mb": peak / 1024}))


def quantize_with_nncf(bundle: Path, work: Path, output: Path) -> float:
    """Quantize the denoiser of an OpenVINO bundle by NNCF with some samples; return the seconds that it took."""
    import nncf
    import openvino

    opened = open_bundle(bundle)
    program = next(iter(opened.programs.values()))
    name = most_called(program).name
    start = time.monotonic()
    model = openvino.Core().read_model(bundle / opened.manifest.graphs[name])
    data = nncf.Dataset([dict(np.load(work / f"sample-{at}.npz")) for at in range(SAMPLES)])
    quantized = nncf.quantize(model, data, subset_size=SAMPLES, preset=nncf.QuantizationPreset.MIXED)
    openvino.save_model(quantized, output, compress_to_fp16=False)
    return time.monotonic() - start


def child(work: str, *arguments: object) -> dict[str, Any]:
    """Do a piece of this file's work in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.unet_call", work, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Build what is missing, quantize the rival, and call all in turns."""
    options.work.mkdir(parents=True, exist_ok=True)
    source = options.work / "sd15"
    if not source.exists():
        write(source, MODELS["sd15"].describe)
    bundles, builds = {}, {}
    for target in options.targets.split(","):
        bundles[target] = options.work / f"{target}.diffc"
        if not bundles[target].exists():
            builds[target] = build(source, bundles[target], target, options.steps)
            print(f"built {target}: {json.dumps(builds[target])}", file=sys.stderr, flush=True)
    later = options.work / "later.npz"
    if not later.exists():
        half, places = options.steps // 2, np.linspace(0, options.steps - 1, SAMPLES).round().astype(int).tolist()
        calls = denoiser_calls(bundles["ort-fp32"], (*places, half))
        for path, feeds in zip(
            (*(options.work / f"sample-{at}.npz" for at in range(SAMPLES)), later), calls, strict=True
        ):
            np.savez(path, **feeds)
    if "ov-fp32" in bundles and options.rival:
        bundles[RIVAL] = options.work / "nncf.xml"
        if not bundles[RIVAL].exists():
            builds[RIVAL] = child("--nncf", bundles["ov-fp32"], options.work, bundles[RIVAL])
    rounds: dict[str, list[dict[str, float]]] = {who: [] for who in bundles}
    for _ in range(options.rounds):
        for who, bundle in bundles.items():
            rounds[who].append(child("--contend", who, bundle, later))
            print(who, rounds[who][-1], file=sys.stderr, flush=True)
    reference = np.load(options.work / "ort-fp32.npy")
    return {
        who: {
            "seconds": min(turn["seconds"] for turn in turns),
            "load": min(turn["load"] for turn in turns),
            "peak_mb": max(turn["peak_mb"] for turn in turns),
            "sqnr": sqnr(np.load(options.work / f"{who}.npy"), reference),
            "build": builds.get(who),
        }
        for who, turns in rounds.items()
    }


def table(measurements: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay the measurements out, as times against float32 in ONNX Runtime."""
    lines = ["| | one call | against ort-fp32 | SQNR | memory, peak | load |", "|---|---|---|---|---|---|"]
    for who, row in measurements.items():
        ratio = measurements["ort-fp32"]["seconds"] / row["seconds"]
        near = "" if row["sqnr"] >= 199 else f"{row['sqnr']:.1f} dB"
        memory = f"{row['peak_mb']:.0f} MB | {row['load']:.1f} s"
        lines.append(f"| {who} | {row['seconds']:.2f} s | {ratio:.2f} × | {near} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where checkpoint and bundles lie")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-rival", dest="rival", action="store_false")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contend", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--nncf", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.contend:
        contend(options.contend[0], Path(options.contend[1]), Path(options.contend[2]))
    elif options.nncf:
        bundle, work, output = map(Path, options.nncf)
        print(json.dumps({"seconds": quantize_with_nncf(bundle, work, output)}))
    else:
        measurements = compare(options)
        print(json.dumps(measurements, indent=1) if options.json else table(measurements))


if __name__ == "__main__":
    main()
