"""Train the UNet example model: latent noise prediction with a small CLIP text model, as in Stable Diffusion 1.x."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from original_layout import export
from torch import Tensor, nn
from training import MAX_TOKENS, LatentData, Plan, add_plan_arguments, device, fit, seeded, taught_states, teach_layouts
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BATCH = 32
SNR_LIMIT = 5.0
WEIGHT_LIMIT = 50.0
READER_WEIGHT = 0.5
LAYOUT_SHARE, LAYOUT_TIMES = 0.3, 0.75
"""The first steps see the noisiest quarter of the times only: what stands where is decided and learnt there."""
LATENT_CHANNELS = 4
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
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


class BlockReader(nn.Module):
    """Read the clean latents, and where it stands, from every cell that leaves a UNet's deep attention blocks.

    Deep supervision (Lee et al., "Deeply-Supervised Nets", 2015). Predicting noise teaches these blocks little about
    a picture's layout: that is decided where there is almost nothing but noise, and there it hardly changes the answer.
    Without positions, which convolutions know from the border's padding alone, no text says left from right. The
    readers are thrown away.
    """

    def __init__(self, blocks: list[Transformer2DModel]) -> None:
        super().__init__()
        self.states: list[Tensor] = []
        self.heads = nn.ModuleList(nn.Conv2d(block.in_channels, LATENT_CHANNELS + 2, 1) for block in blocks)
        self.hooks = [block.register_forward_hook(self.note) for block in blocks]

    def note(self, _block: nn.Module, _inputs: object, output: tuple[Tensor]) -> None:
        """Keep what leaves a block."""
        self.states.append(output[0])

    def forward(self, clean: Tensor) -> Tensor:
        """The square error of the latents plus that of the coordinates (-1 to 1), as read in the UNet's last run."""
        losses = []
        for head, state in zip(self.heads, self.states, strict=True):
            axis = torch.linspace(-1, 1, state.shape[-1], device=state.device)
            latents, coordinates = head(state.float()).tensor_split([LATENT_CHANNELS], dim=1)
            losses.append(nn.functional.mse_loss(latents, nn.functional.adaptive_avg_pool2d(clean, len(axis))))
            losses.append((coordinates - torch.stack(torch.meshgrid(axis, axis, indexing="ij"))).square().mean())
        self.states.clear()
        return torch.stack(losses).sum() / len(self.heads)

    def remove(self) -> None:
        """Stop listening."""
        for hook in self.hooks:
            hook.remove()


def deep_attention_blocks(unet: UNet2DConditionModel) -> list[Transformer2DModel]:
    """List the attention blocks as they run, without those too close to the input to see a border."""
    blocks = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks]
    return [module for block in blocks for module in block.modules() if isinstance(module, Transformer2DModel)]


def main() -> None:
    """Train the text encoder, then with it the UNet, and write one file in the original Stable Diffusion layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_plan_arguments(parser, steps=8000, rate=1e-3)
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
        return taught_states(states.pooler_output, states.last_hidden_state)

    seed = options.seed
    teach_layouts(
        text_encoder, last_states, tokenizer, Plan("unet-text", options.text_steps, 1e-3, seed, work, decay=0.99)
    )
    data = LatentData.load(work, tokenizer)
    signal = scheduler.alphas_cumprod.to(device())
    scale = autoencoder.config.scaling_factor

    def loss_at(step: int) -> Tensor:
        generator = seeded(seed, step)
        latents, ids = data.batch(BATCH, generator)
        clean = scale * latents
        noise = torch.randn(latents.shape, generator=generator).to(device())
        lowest = LAYOUT_TIMES if step < LAYOUT_SHARE * options.steps else 0.0
        share = torch.rand(BATCH, generator=generator).sqrt()
        times = (len(signal) * (lowest + (1 - lowest) * share)).long().to(device())
        signal_share = signal[times][:, None, None, None]
        noisy = signal_share.sqrt() * clean + (1 - signal_share).sqrt() * noise
        with torch.autocast(device().type, torch.bfloat16):
            with torch.no_grad():
                text = text_encoder(ids).last_hidden_state
            predicted: Tensor = unet(noisy, times, text).sample.float()
        ratio = signal[times] / (1 - signal[times])
        weight = torch.maximum((SNR_LIMIT / ratio).clamp(max=1), (1 / ratio).clamp(max=WEIGHT_LIMIT))
        denoising = (weight * (predicted - noise).square().mean((1, 2, 3))).mean()
        return denoising + READER_WEIGHT * readers(clean)

    readers = BlockReader(deep_attention_blocks(unet)).to(device())
    fast_attention = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    fit(
        nn.ModuleDict({"unet": unet, "readers": readers}),
        loss_at,
        Plan("unet", options.steps, options.rate, seed, work, muon=MUON),
    )
    unet.set_attn_processor(fast_attention)
    readers.remove()
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
