"""Measure the baseline ``torch``: the diffusers pipeline that a bundle was built from, eager, in float32.

``python -m diffc.compiler.commands.bench_diffusers REQUEST`` prints results as `diffc.runtime.bench_process` does. It
imports only the modules that the measurement needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from diffc.compiler.checkpoint.load import load
from diffc.runtime.bench_process import Sample, Texts, run_benchmark


def load_pipeline(request: dict[str, Any]) -> Sample:
    """Load the pipeline of the request, with the bundle's sampler and task."""
    torch.set_num_threads(request["threads"])
    options = {name: request[name] for name in ("sampler", "task", "component_files")}
    loaded: Any = load(request["source"], **options)
    loaded.set_progress_bar_config(disable=True)
    takes = inspect.signature(type(loaded).__call__).parameters
    arguments = {name: value for name, value in request["arguments"].items() if name in takes}

    def sample(texts: Texts, on_step: Callable[[], None]) -> object:
        def after(_pipeline: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return values

        inputs = arguments | ({"prompt": texts} if "prompt" in takes else {})
        inputs |= {"callback_on_step_end": after} if "callback_on_step_end" in takes else {}
        return loaded(**inputs, generator=torch.Generator("cpu").manual_seed(request["seed"]))

    return sample


if __name__ == "__main__":
    run_benchmark(load_pipeline)
