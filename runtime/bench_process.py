"""Draw pictures in a process of its own, and say how long each took and how much memory the process ever held.

``python -m diffc.runtime.bench_process REQUEST`` does so with a bundle; whoever is compared with it reports likewise.
REQUEST is a JSON object. Each line on stdout is one too: one for each request, the moment it is drawn, with its
``seconds`` and those from the end of each step to the end of the next (``steps``); then ``peak_bytes``; or ``error``.
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
Draw = Callable[[Texts, Callable[[], None]], object]
"""Draws what the texts say, one for each picture, and calls the function after each step."""


def compete(enter: Callable[[dict[str, Any]], Draw]) -> None:
    """Enter with the request on the command line, draw each of its ``texts``, and report."""
    request = json.loads(sys.argv[1])
    said = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            draw = enter(request)
            for texts in request["texts"]:
                _report(said, _timed(draw, texts))
        _report(said, {"peak_bytes": peak_bytes()})
    except DiffcError as error:
        _report(said, {"error": {"what": error.what, "where": error.where, "fix": error.fix}})
        sys.exit(1)


def _timed(draw: Draw, texts: Texts) -> dict[str, Any]:
    ends = list[float]()
    start = time.perf_counter()
    draw(texts, lambda: ends.append(time.perf_counter()))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "steps": [after - before for before, after in itertools.pairwise(ends)]}


def _report(to: TextIO, found: dict[str, Any]) -> None:
    print(json.dumps(found), file=to, flush=True)


def bundle(request: dict[str, Any]) -> Draw:
    """Load the bundle that is asked for."""
    sampler = load(request["bundle"], threads=request["threads"])
    options = {"seed": request["seed"], "program": request["program"], **request["scalars"]}
    options["output"] = "np" if sampler.makes == "numbers" else "pil"

    def draw(texts: Texts, on_step: Callable[[], None]) -> object:
        return sampler(texts, callback=lambda _: on_step(), **options)

    return draw


if __name__ == "__main__":
    compete(bundle)
