"""Measure the time per request and the peak memory of one process that samples.

``python -m diffc.runtime.bench_process REQUEST`` measures a bundle; its baselines use `run_benchmark` too. REQUEST is a
JSON object. Each line on stdout is one too: after each request its ``seconds``, and those from the end of each step to
the end of the next (``steps``); at the end ``peak_bytes``; or an ``error``.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, TextIO

from diffc.runtime.errors import DiffcError
from diffc.runtime.memory import peak_bytes
from diffc.runtime.sampler import load

Texts = list[str] | str
Sample = Callable[[Texts, Callable[[], None]], object]
"""Samples one image per text, and calls the function after each step."""


def run_benchmark(load_sampler: Callable[[dict[str, Any]], Sample]) -> None:
    """Load the sampler of the request on the command line, measure each of its ``texts``, and print the results."""
    request = json.loads(sys.argv[1])
    results = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            sample = load_sampler(request)
            for texts in request["texts"]:
                _print(results, _timed(sample, texts))
        _print(results, {"peak_bytes": peak_bytes()})
    except DiffcError as error:
        _print(results, {"error": {"what": error.what, "where": error.where, "fix": error.fix}})
        sys.exit(1)


def _timed(sample: Sample, texts: Texts) -> dict[str, Any]:
    ends = list[float]()
    start = time.perf_counter()
    sample(texts, lambda: ends.append(time.perf_counter()))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "steps": [after - before for before, after in itertools.pairwise(ends)]}


def _print(stream: TextIO, result: dict[str, Any]) -> None:
    print(json.dumps(result), file=stream, flush=True)


def load_bundle(request: dict[str, Any]) -> Sample:
    """Load the bundle of the request."""
    sampler = load(request["bundle"], threads=request["threads"])
    options = {"seed": request["seed"], "program": request["program"], **request["scalars"]}
    options["output"] = "np" if sampler.output_kind == "arrays" else "pil"

    def sample(texts: Texts, on_step: Callable[[], None]) -> object:
        return sampler(texts, callback=lambda _: on_step(), **options)

    return sample


if __name__ == "__main__":
    run_benchmark(load_bundle)
