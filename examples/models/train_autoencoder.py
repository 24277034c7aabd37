"""Train the autoencoder of both example models and cache the latents that the denoisers learn from."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from shapes import SIDE, training_pictures
from torch import Tensor, nn
from training import Plan, add_plan_arguments, build_tokenizer, device, fit, random_captions, token_ids
from transformers import CLIPTokenizer

LATENT_DEVIATION = 1 / 0.18215
LATENT_MEAN = 0.33
BATCH = 8
CHUNK = 100
LATENTS = "latents.safetensors"


def new_autoencoder() -> AutoencoderKL:
    """Build the untrained autoencoder: four times smaller latents of four channels."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=SIDE,
        scaling_factor=1 / LATENT_DEVIATION,
        shift_factor=LATENT_MEAN,
    )


def pixels(seed: int, count: int) -> Tensor:
    """Draw a batch of training pictures with values in [-1, 1]."""
    pictures = np.stack([image for _, image in training_pictures(seed, count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous() * 2 - 1


@torch.no_grad()
def standardise(autoencoder: AutoencoderKL, latents: Tensor) -> None:
    """Fold a change of units into the 1×1 convolutions so that every latent channel gets the same mean and spread."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    scale = LATENT_DEVIATION / deviation
    shift = LATENT_MEAN - mean * scale
    quant, post = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(scale)
    quant.weight[:channels] *= scale[:, None, None, None]
    quant.bias[:channels] = quant.bias[:channels] * scale + shift
    quant.bias[channels:] += 2 * scale.log()
    post.bias -= (post.weight[:, :, 0, 0] * (shift / scale)).sum(1)
    post.weight /= scale[:, None, None]


@torch.no_grad()
def peak_signal_to_noise(autoencoder: AutoencoderKL, pictures: Tensor) -> float:
    """Measure in decibels how well pictures survive encoding and decoding."""
    restored = autoencoder.decode(autoencoder.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
    return float(-10 * torch.log10(nn.functional.mse_loss(restored, pictures) / 4))


def error(restored: Tensor, pictures: Tensor) -> Tensor:
    """Weigh small errors by their size and large ones by its square."""
    difference = restored - pictures
    return difference.abs().mean() + 4 * difference.square().mean()


def train_both_halves(options: argparse.Namespace, test: Tensor) -> None:
    """Train encoder and decoder, standardise the latents, and write tokenizer, autoencoder and cached latents."""
    work: Path = options.work
    autoencoder = new_autoencoder().to(device())

    def loss_at(step: int) -> Tensor:
        batch = pixels(options.seed * 1_000_003 + step, BATCH).to(device())
        with torch.autocast(device().type, torch.bfloat16, enabled=step < 0.7 * options.steps):
            posterior = autoencoder.encode(batch).latent_dist
            restored: Tensor = autoencoder.decode(posterior.sample()).sample.float()
        divergence: Tensor = posterior.kl().float().mean()
        return error(restored, batch) + 1e-6 * divergence

    fit(autoencoder, loss_at, Plan("autoencoder", options.steps, options.rate, options.seed, work, decay=0.99))
    with torch.no_grad():
        standardise(autoencoder, autoencoder.encode(pixels(10**9 + 1, 256).to(device())).latent_dist.mode())
    autoencoder.half().float()
    print(f"autoencoder: {peak_signal_to_noise(autoencoder, test):.1f} dB", flush=True)
    autoencoder.save_pretrained(work / "autoencoder")

    build_tokenizer(work / "tokenizer", random_captions(20_000, options.seed))
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    latents, ids = [], []
    for start in range(0, options.pictures, CHUNK):
        scenes, pictures = zip(*training_pictures(10**6 + start, CHUNK), strict=True)
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1
        with torch.no_grad(), torch.autocast(device().type, torch.bfloat16):
            latents.append(autoencoder.encode(batch.to(device())).latent_dist.mode().half().cpu())
        ids.append(token_ids(tokenizer, [scene.caption for scene in scenes]).to(torch.int16))
        if start % 5000 == 0:
            print(f"latents: {start}/{options.pictures}", flush=True)
    save_file({"latents": torch.cat(latents).contiguous(), "ids": torch.cat(ids)}, work / LATENTS)


def train_decoder(options: argparse.Namespace, test: Tensor) -> None:
    """Train the decoder further while the encoder, and with it the cached latents, stays as it is."""
    work: Path = options.work
    autoencoder = AutoencoderKL.from_pretrained(work / "autoencoder").to(device())

    def loss_at(step: int) -> Tensor:
        batch = pixels((options.seed + 1) * 1_000_003 + step, BATCH).to(device())
        with torch.autocast(device().type, torch.bfloat16, enabled=step < 0.5 * options.decoder_steps):
            with torch.no_grad():
                latents = autoencoder.encode(batch).latent_dist.mode()
            restored = autoencoder.decode(latents).sample.float()
        return error(restored, batch)

    fit(
        nn.ModuleDict({"decoder": autoencoder.decoder, "post_quant_conv": autoencoder.post_quant_conv}),
        loss_at,
        Plan("decoder", options.decoder_steps, options.rate / 2, options.seed, work, cooldown=0.6, decay=0.99),
    )
    autoencoder.half().float()
    print(f"decoder: {peak_signal_to_noise(autoencoder, test):.1f} dB", flush=True)
    autoencoder.save_pretrained(work / "autoencoder")


def main() -> None:
    """Train both halves unless that is done, then the decoder alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_plan_arguments(parser, steps=1300, rate=2e-3)
    parser.add_argument("--decoder-steps", type=int, default=1500, help="steps that train the decoder alone")
    parser.add_argument("--pictures", type=int, default=60_000, help="how many pictures to cache latents of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    test = pixels(10**9, 128).to(device())
    if not (options.work / LATENTS).exists():
        train_both_halves(options, test)
    train_decoder(options, test)


if __name__ == "__main__":
    main()
