"""Compile the trained example model and sample four images, from Python."""

import sys
from pathlib import Path

from diffc.compiler import build
from diffc.runtime import load
from diffc.runtime.images import grid, save

MODEL = Path(__file__).parent / "models" / "shapes-unet.safetensors"


def main(output: Path) -> None:
    """Write the bundle and a grid of images below a folder."""
    bundle = build(MODEL, "ort-fp32", output / "shapes.diffc", steps=[10], sampler="dpmpp-2m")
    sampler = load(bundle)
    images = sampler(
        "a red circle left of a blue square",
        seed=0,
        guidance_scale=5.0,
        num_images=4,
        callback=lambda progress: print(f"step {progress.step} of {progress.steps}"),
    )
    save(grid(images), output / "images.png")
    print(f"The images are {output / 'images.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
