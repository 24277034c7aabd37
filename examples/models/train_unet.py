"""Train the UNet example model: latent noise prediction with a small CLIP text model, as in Stable Diffusion 1.x."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from original_layout import export
from torch import Tensor, nn
from training import MAX_TOKENS, LatentData, Plan, add_plan_arguments, device, fit, seeded, teach_attributes
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BATCH = 32
SNR_LIMIT = 5.0
WEIGHT_LIMIT = 50.0
TEXT_WIDTH = 128
MUON = r"attentions\..*(attn1|attn2|ff)\..*weight$"


def new_scheduler() -> DPMSolverMultistepScheduler:
    """The noise schedule of Stable Diffusion 1.x, sampled by DPM-Solver++ 2M."""
    return DPMSolverMultistepScheduler.from_config(
        {
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "clip_sample": False,
            "set_alpha_to_one": False,
        }
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build the untrained text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Build the untrained UNet: three resolutions, cross-attention at the two finer ones and in the middle."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def main() -> None:
    """Train text encoder and UNet together and write one file in the original Stable Diffusion layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_plan_arguments(parser, steps=3200, rate=1e-3)
    parser.add_argument("--text-steps", type=int, default=600, help="steps that train the text encoder alone")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("shapes-unet.safetensors"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    work: Path = options.work
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    autoencoder = AutoencoderKL.from_pretrained(work / "autoencoder")
    autoencoder.register_to_config(_name_or_path="autoencoder")
    text_encoder = new_text_encoder(tokenizer).to(device())
    unet = new_unet().to(device())
    scheduler = new_scheduler()

    def last_states(ids: Tensor) -> list[Tensor]:
        states = text_encoder(ids)
        return [states.pooler_output, states.last_hidden_state[:, -1]]

    seed = options.seed
    teach_attributes(
        text_encoder, last_states, tokenizer, Plan("unet-text", options.text_steps, 1e-3, seed, work, decay=0.99)
    )
    data = LatentData.load(work, tokenizer)
    signal = scheduler.alphas_cumprod.to(device())
    scale = autoencoder.config.scaling_factor

    def loss_at(step: int) -> Tensor:
        generator = seeded(seed, step)
        latents, ids = data.batch(BATCH, generator)
        noise = torch.randn(latents.shape, generator=generator).to(device())
        times = (len(signal) * torch.rand(BATCH, generator=generator).sqrt()).long().to(device())
        kept = signal[times][:, None, None, None]
        noisy = kept.sqrt() * scale * latents + (1 - kept).sqrt() * noise
        with torch.autocast(device().type, torch.bfloat16):
            text = text_encoder(ids).last_hidden_state
            predicted: Tensor = unet(noisy, times, text).sample.float()
        ratio = signal[times] / (1 - signal[times])
        weight = torch.maximum((SNR_LIMIT / ratio).clamp(max=1), (1 / ratio).clamp(max=WEIGHT_LIMIT))
        return (weight * (predicted - noise).square().mean((1, 2, 3))).mean()

    fast_attention = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    text_encoder.set_attn_implementation("eager")
    fit(
        nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}),
        loss_at,
        Plan("unet", options.steps, options.rate, seed, work, muon=MUON),
    )
    unet.set_attn_processor(fast_attention)
    autoencoder.register_to_config(shift_factor=None)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    export(pipeline, work / "tokenizer", options.output)


if __name__ == "__main__":
    main()
