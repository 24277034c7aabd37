"""Compile a sampler that diffusers does not have: CFG++, which adds the noise of the unconditional branch back.

Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", 2024, algorithm 2,
https://arxiv.org/abs/2406.08070. The guidance scale lies between 0 and 1.
"""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from diffc.compiler import capture, write_bundle
from diffc.compiler.checkpoint.load import load as load_pipeline
from diffc.runtime import load
from diffc.runtime.images import save

MODEL = Path(__file__).parent / "models" / "shapes-unet.safetensors"
pipeline = load_pipeline(MODEL)
tokenizer, text_encoder, unet, vae = pipeline.tokenizer, pipeline.text_encoder, pipeline.unet, pipeline.vae
alphas = pipeline.scheduler.alphas_cumprod


def encode(texts: list[str]) -> torch.Tensor:
    """Turn texts into conditioning, [batch, tokens, width]."""
    length = tokenizer.model_max_length
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return text_encoder(tokens.input_ids)[0]


def cfg_plus_plus(
    prompt: list[str], negative_prompt: list[str], guidance_scale: float = 0.6, on_step: Callable[..., None] = print
) -> torch.Tensor:
    """Sample in 20 steps; images [batch, 3, height, width] in [0, 1]."""
    text = torch.cat([encode(negative_prompt), encode(prompt)])
    x = torch.randn(1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    for now, then in pairwise(torch.linspace(999, 0, 21).long()):
        a, b = alphas[now], alphas[then]
        unconditional, conditional = unet(torch.cat([x, x]), now, text).sample.chunk(2)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        clean = (x - (1 - a).sqrt() * guided) / a.sqrt()
        x = b.sqrt() * clean + (1 - b).sqrt() * unconditional
        on_step(x)
    return (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def main(output: Path) -> None:
    """Write the bundle and the image below a folder."""
    components = {"tokenizer": tokenizer, "text_encoder": text_encoder, "unet": unet, "vae": vae}
    program = capture(cfg_plus_plus, components, name="cfg_plus_plus")
    bundle = write_bundle([program], output / "cfg_plus_plus.diffc")
    [image] = load(bundle)("a red circle left of a blue square", seed=0)
    save(image, output / "cfg_plus_plus.png")
    print(f"The image is {output / 'cfg_plus_plus.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
