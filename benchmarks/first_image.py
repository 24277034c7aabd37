"""Measure a bundle of each example model against the diffusers pipeline: time to the first picture, then warm, memory.

`diffc.compiler.commands.bench` says how. Prints medians and their ratio as a table, or with ``--json`` as an object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from diffc.compiler import build
from diffc.compiler.commands.bench import bench

ROOT = Path(__file__).parent.parent
MODELS = {"shapes-unet": "shapes-unet.safetensors", "shapes-dit": "shapes-dit"}
COLUMNS = {
    "first_seconds": ("first picture", 1, "{:.1f} s"),
    "seconds": ("picture, warm", 1, "{:.2f} s"),
    "step_milliseconds": ("step", 1, "{:.0f} ms"),
    "peak_bytes": ("peak", 1e6, "{:.0f} MB"),
}
"""The title of each number, its unit, and how it is written."""


def compared(source: Path, steps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Build a bundle, then sample with it and with diffusers in turns."""
    bundle = build(source, output=folder / f"{source.stem}.diffc", steps=[steps])
    return bench(bundle, against=["torch"], source=source, guidance=5.0, repeat=repeats, progress=say)


def say(what: str) -> None:
    """Print progress."""
    print(what, file=sys.stderr)


def table(measurements: dict[str, dict[str, Any]]) -> str:
    """Lay the medians out, with the ratio diffusers / diffc behind each pair."""
    titles = [f"{title}: diffc | diffusers | ratio" for title, _, _ in COLUMNS.values()]
    lines = [f"| model | {' | '.join(titles)} |", "|---" * (1 + 3 * len(COLUMNS)) + "|"]
    for name, row in measurements.items():
        cells = [name]
        for key, (_, unit, form) in COLUMNS.items():
            cells += [form.format(row["medians"][name][key] / unit) for name in ("diffc", "torch")]
            cells.append(f"{row['ratios']['torch'][key]:.1f} ×")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measurements = {
            name: compared(ROOT / "examples" / "models" / file, options.steps, options.repeats, Path(folder))
            for name, file in MODELS.items()
        }
    print(json.dumps(measurements, indent=1) if options.json else table(measurements))


if __name__ == "__main__":
    main()
