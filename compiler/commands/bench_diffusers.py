"""Enter a comparison with the diffusers pipeline that a bundle was built from: PyTorch, eager, float32.

``python -m diffc.compiler.commands.bench_diffusers REQUEST`` reports as `diffc.runtime.bench_process` says. It imports
no more than it needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from diffc.compiler.checkpoint.load import load
from diffc.runtime.bench_process import Draw, Texts, compete


def pipeline(request: dict[str, Any]) -> Draw:
    """Load the pipeline, with the sampler and for the task that the bundle was built with."""
    torch.set_num_threads(request["threads"])
    loaded: Any = load(request["source"], sampler=request["sampler"], task=request["task"])
    loaded.set_progress_bar_config(disable=True)
    takes = inspect.signature(type(loaded).__call__).parameters
    arguments = {name: value for name, value in request["arguments"].items() if name in takes}

    def draw(texts: Texts, on_step: Callable[[], None]) -> object:
        def after(_pipeline: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return values

        given = arguments | ({"prompt": texts} if "prompt" in takes else {})
        given |= {"callback_on_step_end": after} if "callback_on_step_end" in takes else {}
        return loaded(**given, generator=torch.Generator("cpu").manual_seed(request["seed"]))

    return draw


if __name__ == "__main__":
    compete(pipeline)
