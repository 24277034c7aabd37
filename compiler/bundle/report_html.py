"""Lay out the measurements of a build as one page of HTML: quantization, feature caches, engines, precision, times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

REPORT = "report.html"
"""Its file in a bundle. It holds times, so that no manifest lists it (decision 15)."""

WIDTH, HEIGHT = 600, 240

LEAST, MOST = 15.0, 75.0
"""The range of the plot, in dB."""


def page(reports: Mapping[str, Any]) -> str:
    """Lay out a build's reports, by their names."""
    return PAGE.format("".join(SECTIONS[name](report) for name, report in reports.items()))


def quantization(report: Mapping[str, Any]) -> str:
    """Show the error of latents and images, and the layers, the worst first."""
    lines = [
        f'<polyline points="{_points(each["steps"])}"><title>{escape(each["prompt"])}</title></polyline>'
        for each in report["drift"]
    ]
    prompts = [f"<tr><td>{escape(each['prompt'])}</td><td>{each['psnr']:.1f}</td></tr>" for each in report["drift"]]
    layers = [
        f"<tr><td>{escape(each['name'])}</td><td>{each['weight']}</td><td>{each['activation']}</td>"
        f"<td>{each['sqnr']:.1f}</td></tr>"
        for each in report["layers"]
    ]
    notes = "".join(f"<p>{escape(note)}</p>" for note in report["notes"])
    return (
        f"<h1>Quantization</h1>{notes}"
        "<h2>Latents against their error, in dB, from the first step to the last (0 to 60 dB)</h2>"
        f"{_drawing(lines)}"
        f"<h2>Images, the worst first</h2><table><tr><th>prompt<th>PSNR, dB</tr>{''.join(prompts)}</table>"
        "<h2>Layers alone, the worst first</h2><table><tr><th>layer<th>weight<th>activation<th>SQNR, dB</tr>"
        f"{''.join(layers)}</table>{_refusals(report.get('refusals', ()))}\n"
    )


def _refusals(refusals: Sequence[Mapping[str, str]]) -> str:
    """Lay out why techniques left layers alone, by technique and reason."""
    layers = defaultdict[tuple[str, str], list[str]](list)
    for refusal in refusals:
        layers[refusal["technique"], refusal["reason"]].append(refusal["layer"])
    rows = [
        f"<tr><td>{escape(technique)}</td><td>{escape(reason)}</td>"
        f"<td><details><summary>{len(names)}</summary>{escape(', '.join(names))}</details></td></tr>"
        for (technique, reason), names in layers.items()
    ]
    table = f"<table><tr><th>technique<th>reason<th>layers</tr>{''.join(rows)}</table>"
    return f"<h2>Why techniques left layers alone</h2>{table}" if rows else ""


def cache(report: Mapping[str, Any]) -> str:
    """Show the schedules that were tried, by time and PSNR, and the one that was built."""
    built = report["chosen"]
    marks = [_mark(each, "chosen" if each == built else "fixed" if each["fixed"] else "") for each in report["tried"]]
    rows = [
        f"<tr><td>{each['time']:.0%}</td><td>{each['psnr']:.1f}</td>"
        f"<td>{'' if each['drop'] is None else format(each['drop'], '.2f')}</td><td>{_schedule(each['way'])}</td></tr>"
        for each in report["tried"]
    ]
    return (
        "<h1>Feature cache</h1><h2>PSNR against the uncached images, from 15 to 75 dB, over the time of the "
        "denoiser, from none to all of the uncached time; hollow: fixed intervals; red: the schedule built</h2>"
        f"{_drawing(marks)}"
        "<table><tr><th>time<th>PSNR, dB<th>drop, dB<th>each step: all (.), or which feature is reused</tr>"
        f"{''.join(rows)}</table>\n"
    )


def engines(report: Mapping[str, Any]) -> str:
    """Show the types of the values inside engines, and the time and memory of their build."""
    rows = [
        f"<tr><td>{escape(name)}</td><td>{' '.join(each['archs'])}</td><td>{each['bytes'] / 1e6:.1f}</td>"
        f"<td>{each['weights'] / 1e6:.1f}{', in the graph alone' if each['stripped'] else ''}</td>"
        f"<td>{each['seconds']:.1f}</td><td>{each['peak_bytes'] / 1e6:.0f}</td>"
        f"<td>{', '.join(f'{kind} {count}' for kind, count in sorted(each['types'].items()))}</td></tr>"
        for name, each in report.items()
    ]
    builders = " and ".join(sorted({each["builder"] for each in report.values()}))
    return (
        f"<h1>Which engines were built</h1><p>By {escape(builders)}.</p>"
        "<table><tr><th>graph<th>GPUs<th>MB<th>weights, MB<th>seconds<th>memory, MB<th>values by type</tr>"
        f"{''.join(rows)}</table>\n"
    )


def precision(report: Mapping[str, Any]) -> str:
    """Show the layers that compute in float32, the largest values first."""
    rows = "".join(
        f"<tr><td>{escape(each['graph'])}</td><td>{escape(each['layer'])}</td><td>{each['largest']:.3g}</td></tr>"
        for each in report["wide"]
    )
    remark = f"in float32 is what may exceed {report['limit']:g}" if rows else "nothing was found to exceed its range"
    table = f"<table><tr><th>graph<th>layer<th>largest value</tr>{rows}</table>" if rows else ""
    return f"<h1>What computes in {escape(report['dtype'])}</h1><p>All layers; {remark}.</p>{table}\n"


def phases(report: Mapping[str, Any]) -> str:
    """Show how long each phase of the build took, in order."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{seconds:.1f}</td></tr>" for name, seconds in report.items())
    return f"<h1>How long the build took</h1><table><tr><th>phase<th>seconds</tr>{rows}</table>\n"


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "cache": cache,
    "engines": engines,
    "phases": phases,
    "precision": precision,
    "quantization": quantization,
}

PAGE = """<!doctype html><meta charset="utf-8"><title>diffc: report of a build</title>
<style>body{{font:14px sans-serif;margin:2em}}td,th{{padding:2px 10px;text-align:left}}
svg{{background:#f6f6f6}}polyline{{fill:none;stroke:#36c;stroke-width:1.5}}circle{{fill:#36c;stroke:#36c}}
circle.fixed{{fill:none}}circle.chosen{{fill:#c33;stroke:#c33}}</style>
{}"""


def _drawing(shapes: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">{"".join(shapes)}</svg>'


def _points(steps: Sequence[float]) -> str:
    across = WIDTH / max(1, len(steps) - 1)
    return " ".join(f"{at * across:.1f},{HEIGHT - 4 * min(60.0, max(0.0, each)):.1f}" for at, each in enumerate(steps))


def _mark(tried: Mapping[str, Any], kind: str) -> str:
    high = (min(MOST, max(LEAST, tried["psnr"])) - LEAST) / (MOST - LEAST)
    place = f'cx="{tried["time"] * WIDTH:.1f}" cy="{HEIGHT * (1 - high):.1f}" r="4"'
    title = f"{tried['time']:.0%} of the time, {tried['psnr']:.1f} dB"
    return f'<circle {place} class="{kind}"><title>{title}</title></circle>'


def _schedule(reuses: Sequence[Sequence[int] | None]) -> str:
    return "".join("." if reuse is None else str(reuse[1]) for reuse in reuses)
