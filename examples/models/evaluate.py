"""Judge an example model: let the reference pipeline draw held-out captions and count what it gets right.

The attributes (shape, colour, size and relation) are those that the captions name. The Fréchet distance is the one
between two Gaussians, fitted to the means of 8 by 8 pixel blocks (192 numbers a picture, from 0 to 1) of the model's
pictures and of as many drawn ones for the same captions; two sets of drawn pictures give the distance's floor.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from checker import accuracy
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from numpy.typing import NDArray
from original_layout import load
from PIL import Image, ImageDraw
from shapes import SIDE, Picture, Scene, draw, held_out_scenes

BATCH = 25
BLOCK = 8
GRID_COLUMNS, GRID_ROWS = 6, 4
CELL, LABEL = 2 * SIDE, 26


def open_model(path: Path) -> DiffusionPipeline:
    """Load a model with diffusers: a file in the original layout, or the folder of a Stable Diffusion 3 pipeline."""
    if path.is_dir():
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            path, text_encoder_3=None, tokenizer_3=None, local_files_only=True, dtype=torch.float32
        )
    else:
        pipeline = load(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def generate(pipeline: DiffusionPipeline, scenes: Sequence[Scene], steps: int, guidance: float) -> list[Picture]:
    """Sample an image for each scene's caption, from noise seeded by its place in the list."""
    pictures: list[Picture] = []
    begun = time.monotonic()
    for start in range(0, len(scenes), BATCH):
        captions = [scene.caption for scene in scenes[start : start + BATCH]]
        generators = [torch.Generator().manual_seed(start + index) for index in range(len(captions))]
        result = pipeline(
            captions,
            height=SIDE,
            width=SIDE,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        )
        pictures += list(result.images.astype(np.float32))
        pace = (time.monotonic() - begun) / len(pictures)
        print(f"drew {len(pictures)}/{len(scenes)} pictures, {pace:.2f} s each", flush=True)
    return pictures


def features(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    """Average the pixels of every block of every picture."""
    stacked = np.stack(pictures).astype(np.float64)
    blocks = SIDE // BLOCK
    means = stacked.reshape(len(pictures), blocks, BLOCK, blocks, BLOCK, 3).mean(axis=(2, 4))
    return np.asarray(means.reshape(len(pictures), -1), np.float64)


def frechet_distance(first: Sequence[Picture], second: Sequence[Picture]) -> float:
    """The squared Fréchet distance between the Gaussians of two sets of pictures."""
    a, b = features(first), features(second)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariance_b @ root), 0, None)).sum()
    offset = a.mean(0) - b.mean(0)
    return float(offset @ offset + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)


def drawn_pictures(scenes: Sequence[Scene], seed: int) -> list[Picture]:
    """Draw every scene once, as the training data is drawn."""
    rng = np.random.default_rng(seed)
    return [draw(scene, rng) for scene in scenes]


def write_grid(pictures: Sequence[Picture], scenes: Sequence[Scene], path: Path) -> None:
    """Write the first pictures, enlarged and with their captions, as one PNG file."""
    grid = Image.new("RGB", (GRID_COLUMNS * CELL, GRID_ROWS * (CELL + LABEL)), "white")
    pen = ImageDraw.Draw(grid)
    for index, (image, scene) in enumerate(zip(pictures[: GRID_COLUMNS * GRID_ROWS], scenes, strict=False)):
        x, y = index % GRID_COLUMNS * CELL, index // GRID_COLUMNS * (CELL + LABEL)
        pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        grid.paste(Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC), (x, y))
        lines = [scene.first.words()]
        if scene.second is not None:
            lines.append(f"{scene.relation} {scene.second.words()}")
        pen.text((x + 2, y + CELL), "\n".join(lines), fill="black", font_size=9, spacing=1)
    grid.quantize(256).save(path, optimize=True)


def main() -> None:
    """Draw, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on the last line")
    parser.add_argument("--grid", type=Path, help="write a grid of pictures to this PNG file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scenes = held_out_scenes(options.captions)
    pictures = generate(open_model(options.model), scenes, options.steps, options.guidance)
    result = accuracy(pictures, scenes)
    distance = frechet_distance(pictures, drawn_pictures(scenes, 1))
    floor = frechet_distance(drawn_pictures(scenes, 2), drawn_pictures(scenes, 1))
    if options.grid:
        write_grid(pictures, scenes, options.grid)
    if options.json:
        report = {
            "overall": result.overall,
            **result.by_kind(),
            "perfect": result.perfect / result.pictures,
            "frechet": distance,
            "frechet_floor": floor,
        }
        print(json.dumps(report))
        return
    for kind, share in result.by_kind().items():
        print(f"{kind:10}{share:8.1%}  of {result.total[kind]}")
    print(f"{'overall':10}{result.overall:8.1%}  of {sum(result.total.values())} attributes")
    print(f"{'perfect':10}{result.perfect / result.pictures:8.1%}  of {result.pictures} pictures")
    print(f"{'Fréchet':10}{distance:8.3f}  ({floor:.3f} between two sets of drawn pictures)")


if __name__ == "__main__":
    main()
