"""Fuzz bundles, checkpoints and requests: ``python -m tests.fuzz.run --seed 0 --inputs 10000 --seconds 1800``.

Input ``n`` of a seed is the same on every machine; ``--first n --inputs 1`` tries it alone. What a try ends in beside a
result and a refusal (`DiffcError`) is a fault: it is printed with its number, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

LIMIT = 60
"""Seconds after which an input hangs."""


class Hang(BaseException):
    """Report an input that takes longer than the limit; no handler of errors may catch it."""


def main() -> None:
    """Try inputs until there are enough, or the time is over, and print what they ended in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1800)
    options = parser.parse_args()
    faulthandler.enable()
    with tempfile.TemporaryDirectory(prefix="diffc-fuzz-") as folder:
        subjects = all_subjects(Path(folder))
        counts, faults = fuzz(
            subjects, options.seed, range(options.first, options.first + options.inputs), options.seconds
        )
    for fault in faults:
        print(fault)
    print(f"seed {options.seed}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    sys.exit(bool(faults))


def all_subjects(folder: Path) -> Mapping[str, tuple[int, Any]]:
    """Write what is mutated below a folder; return each subject with its share of the inputs."""
    from tests.compiler.conftest import tiny_pipeline
    from tests.format.opening_cases import ROOT
    from tests.fuzz.subjects import Bundles, Checkpoints, Requests, Vocabularies
    from tests.fuzz.vocabularies import save_merges, save_pieces

    tiny_pipeline().save_pretrained(folder / "checkpoint")
    save_merges(folder / "merges")
    subjects = {"vocabulary of merges": (1, Vocabularies(folder / "merges", folder / "mutated"))}
    if importlib.util.find_spec("sentencepiece"):
        save_pieces(folder / "pieces")
        subjects["vocabulary of pieces"] = (1, Vocabularies(folder / "pieces", folder / "mutated"))
    return {
        "bundle": (14, Bundles(ROOT, folder / "bundle.diffc")),
        "request": (5, Requests(ROOT)),
        "checkpoint": (1, Checkpoints(folder / "checkpoint", folder / "mutated")),
        **subjects,
    }


def fuzz(
    subjects: Mapping[str, tuple[int, Any]], seed: int, numbers: range, seconds: float = float("inf")
) -> tuple[Counter[str], list[str]]:
    """Try the inputs of these numbers; return counts of their ends by kind, and the faults."""
    shares = [name for name, (share, _) in subjects.items() for _ in range(share)]
    counts, faults, start = Counter[str](), list[str](), time.monotonic()
    for done, number in enumerate(numbers):
        if done and done % 1000 == 0:
            print(f"{done} inputs, {time.monotonic() - start:.0f} s", flush=True)
        if time.monotonic() - start > seconds:
            break
        random = Random(f"{seed} {number}")
        name = random.choice(shares)
        try:
            with _limited(), warnings.catch_warnings(), _silenced():
                warnings.simplefilter("ignore")
                refusal = subjects[name][1].try_one(random)
            fault = "" if refusal is None else unreadable(refusal)
            counts[f"{name}s " + ("refused" if refusal is not None else "accepted")] += 1
        except (Exception, Hang) as error:
            fault = "".join(traceback.format_exception(error))
        if fault:
            counts["faults"] += 1
            faults.append(f"input {number} ({name}):\n{fault}")
    return counts, faults


def unreadable(refusal: str) -> str:
    """Return a refusal that is not an error of a few lines, or nothing."""
    lines = refusal.splitlines()
    bad = len(lines) > 4 or "Traceback" in refusal or "\x1b" in refusal or "contextlib.py" in refusal
    return f"the refusal cannot be read: {refusal}" if bad else ""


@contextmanager
def _limited() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise Hang(f"more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT)
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True)  # where native code hangs, no signal is handled
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _silenced() -> Iterator[None]:
    """Leave out what libraries print themselves."""
    with open(os.devnull, "w") as nothing:
        before = sys.stderr
        sys.stderr = nothing
        try:
            yield
        finally:
            sys.stderr = before


if __name__ == "__main__":
    main()
