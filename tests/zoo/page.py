"""Write `docs/pipelines.md`: ``python -m tests.zoo.page [NAME…]`` sweeps entries and replaces their rows."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import diffusers

from tests.conftest import ROOT
from tests.tolerances import PROMPTS_APART
from tests.zoo import ABSENT, REFUSED, WRONG, ZOO
from tests.zoo.entry import matching
from tests.zoo.sweep import PROMPTS, SEEDS, Outcome, quiet, sweep

PAGE = ROOT / "docs" / "pipelines.md"
ROW = re.compile(r"\| `(?P<name>[^`]+)` \| (?!not swept)(?P<status>\w+) \|")


def status_of(name: str) -> str:
    """Return what the mark of an entry says: ``right`` where it has none."""
    return "refused" if name in REFUSED else "wrong" if name in WRONG else "right"


def row(outcome: Outcome) -> str:
    """Return the row of an entry."""
    name, status = outcome.name, outcome.status
    if status in ("refused", "failed"):
        why = REFUSED.get(name, outcome.message[:200]).replace("|", "\\|")
        return f"| `{name}` | {status} | | | | {why} |"
    figures = f"{outcome.graphs} | {outcome.staged:.0%} | {outcome.difference:.0e}"
    return f"| `{name}` | {status} | {figures} | {WRONG.get(name, '')} |"


def unswept(name: str) -> str:
    """Return the row of an entry that nobody swept."""
    why = f"diffusers needs {ABSENT[name]} for it" if name in ABSENT else ""
    return f"| `{name}` | not swept | | | | {why} |"


def rows_of(page: str) -> dict[str, str]:
    """Return the rows of a page by the names of their entries."""
    lines = page.splitlines()
    return {match["name"]: line for line in lines if (match := ROW.match(line))}


def page(rows: Mapping[str, str]) -> str:
    """Return the page of some rows, by name."""
    lines = [rows.get(name, unswept(name)) for name in sorted(ZOO | ABSENT)]
    statuses = ("right", "wrong", "refused", "failed", "not swept")
    counts = {status: sum(f"| {status} |" in line for line in lines) for status in statuses}
    counted = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    head = f"""# Pipelines

What becomes of {len(lines)} pipelines of diffusers {diffusers.__version__}: {counted}.
The tests assemble each from tiny random weights, save it, build it with `diffc build`, and sample
{len(PROMPTS)} prompts (an empty one, five words, one longer than the maximum) at {len(SEEDS)} seeds each; the
images of any two prompts differ by at least {PROMPTS_APART}. *Right*: the largest difference from what
diffusers samples is at most 1e-3, in float32, relative to the largest value where that is above 1;
noise that a pipeline draws without its generator is fixed by `torch.manual_seed(~seed)` in diffusers.
*Refused*: the build or the run ends with this message, and nothing is sampled. *Not swept*: the tests
assemble it, or would with the package that the row names, and nobody has compared it yet. *Staged*: the share of
the denoiser's parameters that depends on no latents, and can so leave the loop.

`make test-zoo` checks every row; `make zoo-page` writes the page again.

| pipeline | | graphs | staged | difference | why |
|---|---|---|---|---|---|
"""
    return head + "\n".join(lines) + "\n"


def main(patterns: Iterable[str]) -> None:
    """Sweep the entries of these names or patterns, all by default, and write the page."""
    quiet()
    for name in matching(patterns or "*"):
        with tempfile.TemporaryDirectory() as folder:
            outcome = sweep(name, Path(folder))
        print(outcome, flush=True)
        rows = rows_of(PAGE.read_text(encoding="utf-8")) | {name: row(outcome)}
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
