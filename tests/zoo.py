"""Assemble tiny pipelines with random weights, one entry for each way to make pictures, films and sound.

Each is what its published checkpoints are, only smaller: the same components, the same kind of scheduler and options.
Nothing is loaded: tokenizers have a made-up vocabulary. Weights are the same each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Any

import diffusers as d
import torch
import transformers as t
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

LENGTH = 16
"""Tokens of a text."""

WIDTH = 32
"""Channels of a text's embedding."""

SIZE = {"height": 16, "width": 16}
WORDS = ("a", "red", "blue", "circle", "square")


@dataclass(frozen=True)
class Entry:
    """Hold a pipeline and the keyword arguments for one call of it; its texts and its guidance are among them."""

    pipeline: Any
    request: dict[str, Any]
    ip_adapter: dict[str, torch.Tensor] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Name the arguments that are texts."""
        return tuple(key for key in ("prompt", "negative_prompt") if key in self.request)

    @property
    def guidance(self) -> str | None:
        """Name the argument that is the guidance scale."""
        return next((key for key in ("guidance_scale", "true_cfg_scale") if key in self.request), None)

    def draw(self, seed: int = 0, **changes: Any) -> torch.Tensor:
        """Run the pipeline eagerly and give its first result."""
        generator = torch.Generator("cpu").manual_seed(seed)
        result = self.pipeline(**self.request | {"return_dict": False, "generator": generator} | changes)
        return torch.as_tensor(result[0] if isinstance(result, tuple) else result)


ZOO: dict[str, Callable[[], Entry]] = {}


def entry(name: str) -> Callable[[Callable[[], Entry]], Callable[[], Entry]]:
    """Register a function that assembles a pipeline, with the seed set and no weights left at zero."""

    def register(assemble: Callable[[], Entry]) -> Callable[[], Entry]:
        def seeded() -> Entry:
            torch.manual_seed(0)
            made = assemble()
            made.pipeline.set_progress_bar_config(disable=True)
            for component in made.pipeline.components.values():
                if isinstance(component, nn.Module):
                    component.eval().requires_grad_(False)
                    wake(component)
            return made

        ZOO[name] = seeded
        return seeded

    return register


def wake(module: nn.Module) -> None:
    """Fill weights that training would start at zero: they would hide what is before them."""
    for weight in module.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)


def texts(**request: Any) -> dict[str, Any]:
    """Ask for a text with guidance, at the small size, in three steps."""
    default = {"prompt": "a red circle", "negative_prompt": "blue", "guidance_scale": 4.0, "num_inference_steps": 3}
    return default | SIZE | {"output_type": "pt"} | request


def without(request: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Leave out what a pipeline does not take."""
    return {key: value for key, value in request.items() if key not in keys}


def picture(channels: int = 3, size: int = 16) -> torch.Tensor:
    """Draw a picture on [0, 1]."""
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(1))


def mask() -> torch.Tensor:
    """Mark the right half of a picture."""
    return torch.cat([torch.zeros(1, 1, 16, 8), torch.ones(1, 1, 16, 8)], dim=3)


# Tokenizers


def clip_tokenizer() -> t.CLIPTokenizer:
    """Make a byte-level BPE that knows every byte and two words."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("b", "l"), ("u", "e</w>"), ("bl", "ue</w>")]
    pieces = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {piece: n for n, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return t.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def t5_tokenizer() -> t.T5Tokenizer:
    """Make a unigram tokenizer that knows letters and the words of the requests."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -3.0) for word in WORDS)]
    letters = [(letter, -5.0) for letter in ascii_lowercase]
    return t.T5Tokenizer(vocab=[*pieces, *letters], extra_ids=0, model_max_length=LENGTH)


def bert_tokenizer() -> t.BertTokenizer:
    """Make a word-piece tokenizer that knows letters."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_lowercase, *(f"##{c}" for c in ascii_lowercase)]
    return t.BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=LENGTH)


def gemma_tokenizer() -> t.GemmaTokenizer:
    """Make a BPE with spaces written as ▁ that knows letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *ascii_lowercase]
    return t.GemmaTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], model_max_length=LENGTH)


# Encoders


def clip_config(tokenizer: Any, **changes: Any) -> t.CLIPTextConfig:
    """Describe a text encoder of two layers."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "projection_dim": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return t.CLIPTextConfig(**settings | changes)


def clip(suffix: str = "", projected: bool = False, **changes: Any) -> dict[str, Any]:
    """Make a CLIP text encoder and its tokenizer, as the components of a pipeline."""
    tokenizer = clip_tokenizer()
    model = (t.CLIPTextModelWithProjection if projected else t.CLIPTextModel)(clip_config(tokenizer, **changes))
    return {f"text_encoder{suffix}": model, f"tokenizer{suffix}": tokenizer}


def t5(suffix: str = "", width: int = WIDTH, multilingual: bool = False) -> dict[str, Any]:
    """Make a T5 encoder and its tokenizer, as the components of a pipeline."""
    config, model = (t.UMT5Config, t.UMT5EncoderModel) if multilingual else (t.T5Config, t.T5EncoderModel)
    settings = {"vocab_size": 64, "d_model": width, "d_ff": 37, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    return {f"text_encoder{suffix}": model(config(**settings)), f"tokenizer{suffix}": t5_tokenizer()}


def gemma() -> dict[str, Any]:
    """Make a Gemma 2 language model and its tokenizer, as the components of a pipeline."""
    settings = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}
    model = t.Gemma2Model(t.Gemma2Config(vocab_size=64, **settings, **heads))
    return {"text_encoder": model, "tokenizer": gemma_tokenizer()}


def clip_vision() -> t.CLIPVisionModelWithProjection:
    """Make an image encoder."""
    settings = {"hidden_size": WIDTH, "projection_dim": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2}
    return t.CLIPVisionModelWithProjection(
        t.CLIPVisionConfig(**settings, num_attention_heads=4, image_size=16, patch_size=8)
    )


# Denoisers and decoders


def kl(**changes: Any) -> d.AutoencoderKL:
    """Make an autoencoder of factor 2 with four channels."""
    settings: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 8,
    }
    return d.AutoencoderKL(**settings | changes)


UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def unet(**changes: Any) -> d.UNet2DConditionModel:
    """Make a UNet of two levels with cross-attention to a text."""
    blocks = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return d.UNet2DConditionModel(**UNET | blocks | changes)


def betas(scheduler: type, **changes: Any) -> Any:
    """Make a scheduler with Stable Diffusion's schedule."""
    return scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes)


def ddim() -> d.DDIMScheduler:
    """Make Stable Diffusion's scheduler."""
    return betas(d.DDIMScheduler, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def sd(pipeline: type, request: dict[str, Any], **components: Any) -> Entry:
    """Put a pipeline of Stable Diffusion's kind together."""
    common = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    defaults = {"vae": kl(), **clip(), "unet": unet(), "scheduler": ddim()}
    return Entry(pipeline(**defaults | common | components), request)


# Stable Diffusion


@entry("StableDiffusionPipeline")
def stable_diffusion() -> Entry:
    return sd(d.StableDiffusionPipeline, texts())


@entry("StableDiffusionImg2ImgPipeline")
def image_to_image() -> Entry:
    return sd(
        d.StableDiffusionImg2ImgPipeline,
        without(texts(image=picture(), strength=0.7, num_inference_steps=5), *SIZE),
        scheduler=betas(d.EulerAncestralDiscreteScheduler, steps_offset=1),
    )


@entry("StableDiffusionInpaintPipeline (4 channels)")
def inpaint_4() -> Entry:
    return sd(d.StableDiffusionInpaintPipeline, texts(image=picture(), mask_image=mask()))


@entry("StableDiffusionInpaintPipeline (9 channels)")
def inpaint_9() -> Entry:
    request = texts(image=picture(), mask_image=mask())
    return sd(d.StableDiffusionInpaintPipeline, request, unet=unet(in_channels=9))


@entry("StableDiffusionInstructPix2PixPipeline")
def instruct_pix2pix() -> Entry:
    request = without(texts(image=picture(), image_guidance_scale=1.5), *SIZE)
    return sd(d.StableDiffusionInstructPix2PixPipeline, request, unet=unet(in_channels=8))


@entry("StableDiffusionUpscalePipeline")
def upscale() -> Entry:
    pipeline = d.StableDiffusionUpscalePipeline(
        vae=kl(scaling_factor=0.08333),
        **clip(),
        unet=unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler=ddim(),
    )
    return Entry(pipeline, without(texts(image=picture(size=8)), *SIZE))


@entry("StableDiffusionLatentUpscalePipeline")
def latent_upscale() -> Entry:
    pipeline = d.StableDiffusionLatentUpscalePipeline(
        vae=kl(),
        **clip(),
        unet=unet(in_channels=8, out_channels=5, time_cond_proj_dim=128 + WIDTH, sample_size=16),
        scheduler=d.EulerDiscreteScheduler(prediction_type="sample"),
    )
    return Entry(pipeline, without(texts(image=picture()), *SIZE))


@entry("StableDiffusionControlNetPipeline")
def controlnet() -> Entry:
    control = d.ControlNetModel(
        **UNET, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), conditioning_embedding_out_channels=(8, 16)
    )
    request = texts(image=picture(), controlnet_conditioning_scale=0.8, control_guidance_end=0.7)
    return sd(d.StableDiffusionControlNetPipeline, request, controlnet=control)


@entry("StableDiffusionControlNetPipeline (two)")
def two_controlnets() -> Entry:
    single = controlnet().pipeline.controlnet
    other = d.ControlNetModel.from_config(single.config)
    request = texts(image=[picture(), 1 - picture()], controlnet_conditioning_scale=[0.8, 0.5])
    return sd(d.StableDiffusionControlNetPipeline, request, controlnet=[single, other])


@entry("StableDiffusionAdapterPipeline")
def t2i_adapter() -> Entry:
    adapter = d.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2)
    return sd(d.StableDiffusionAdapterPipeline, texts(image=picture()), adapter=adapter)


@entry("StableDiffusionPipeline (IP-Adapter)")
def ip_adapter() -> Entry:
    made = sd(
        d.StableDiffusionPipeline,
        texts(ip_adapter_image=picture()),
        image_encoder=clip_vision(),
        feature_extractor=t.CLIPImageProcessor(size=16, crop_size=16),
    )
    crossing = [m for name, m in made.pipeline.unet.named_modules() if name.endswith("attn2")]
    keys = {
        f"{2 * n + 1}.to_{kind}_ip.weight": torch.randn_like(m.to_k.weight) * 0.2
        for n, m in enumerate(crossing)
        for kind in "kv"
    }
    projection = {"proj.weight": torch.randn(4 * WIDTH, WIDTH) * 0.2, "proj.bias": torch.zeros(4 * WIDTH)}
    norm = {"norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}
    weights = {"image_proj": projection | norm, "ip_adapter": keys}
    made.pipeline.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    flat = {f"{part}.{name}": tensor for part, tensors in weights.items() for name, tensor in tensors.items()}
    return replace(made, ip_adapter=flat)


@entry("LatentConsistencyModelPipeline")
def latent_consistency() -> Entry:
    return sd(
        d.LatentConsistencyModelPipeline,
        without(texts(), "negative_prompt"),
        unet=unet(time_cond_proj_dim=32),
        scheduler=betas(d.LCMScheduler),
    )


@entry("AnimateDiffPipeline")
def animate_diff() -> Entry:
    adapter = d.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
    )
    pipeline = d.AnimateDiffPipeline(vae=kl(), **clip(), unet=unet(), motion_adapter=adapter, scheduler=ddim())
    return Entry(pipeline, texts(num_frames=4))


@entry("MarigoldDepthPipeline")
def marigold() -> Entry:
    pipeline = d.MarigoldDepthPipeline(
        unet=unet(in_channels=8),
        vae=kl(),
        scheduler=betas(d.DDIMScheduler, clip_sample=False, prediction_type="v_prediction"),
        **clip(),
        prediction_type="depth",
    )
    request = {"image": picture(), "num_inference_steps": 3, "processing_resolution": 0, "output_type": "pt"}
    return Entry(pipeline, request)


# Stable Diffusion XL


def sdxl_unet(sizes: int, **changes: Any) -> d.UNet2DConditionModel:
    """Make a UNet that is told the picture's sizes and the pooled text."""
    return unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=8 * sizes + WIDTH,
        **changes,
    )


@entry("StableDiffusionXLPipeline")
def sdxl() -> Entry:
    pipeline = d.StableDiffusionXLPipeline(
        vae=kl(),
        **clip(),
        **clip("_2", projected=True, hidden_act="gelu"),
        unet=sdxl_unet(6, cross_attention_dim=2 * WIDTH),
        scheduler=betas(d.EulerDiscreteScheduler, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )
    return Entry(pipeline, texts())


@entry("StableDiffusionXLImg2ImgPipeline (refiner)")
def sdxl_refiner() -> Entry:
    pipeline = d.StableDiffusionXLImg2ImgPipeline(
        vae=kl(),
        text_encoder=None,
        tokenizer=None,
        **clip("_2", projected=True, hidden_act="gelu"),
        unet=sdxl_unet(5),
        scheduler=betas(d.EulerDiscreteScheduler, steps_offset=1, timestep_spacing="leading"),
        requires_aesthetics_score=True,
        add_watermarker=False,
    )
    return Entry(pipeline, without(texts(image=picture(), strength=0.6, num_inference_steps=5), *SIZE))


# Transformers


@entry("DDPMPipeline")
def ddpm() -> Entry:
    denoiser = d.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    return Entry(d.DDPMPipeline(denoiser, d.DDPMScheduler()), {"num_inference_steps": 3, "output_type": "np"})


@entry("DiTPipeline")
def dit() -> Entry:
    transformer = d.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=2, sample_size=8
    )
    request = {"class_labels": [1], "guidance_scale": 4.0, "num_inference_steps": 3, "output_type": "np"}
    return Entry(d.DiTPipeline(transformer, kl(), d.DDIMScheduler(clip_sample=False)), request)


@entry("StableDiffusion3Pipeline")
def stable_diffusion_3() -> Entry:
    transformer = d.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    pipeline = d.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_kl(),
        **clip(projected=True),
        **clip("_2", projected=True, hidden_act="gelu"),
        **t5("_3", width=2 * WIDTH),
    )
    return Entry(pipeline, texts(max_sequence_length=LENGTH))


def flow_kl() -> d.AutoencoderKL:
    """Make an autoencoder as flow-matching models have it, with a shift and without convolutions around the latents."""
    return kl(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)


@entry("FluxPipeline")
def flux() -> Entry:
    transformer = d.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = d.FluxPipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flow_kl(),
        **clip(),
        **t5("_2"),
        transformer=transformer,
    )
    return Entry(pipeline, without(texts(max_sequence_length=LENGTH), "negative_prompt"))


@entry("FluxPipeline (true guidance)")
def flux_guided() -> Entry:
    made = flux()
    request = made.request | {"negative_prompt": "blue", "true_cfg_scale": 3.0}
    return Entry(made.pipeline, request)


@entry("ChromaPipeline")
def chroma() -> Entry:
    transformer = d.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return Entry(
        d.ChromaPipeline(scheduler=scheduler, vae=flow_kl(), **t5(), transformer=transformer),
        texts(max_sequence_length=LENGTH),
    )


PIXART: dict[str, Any] = {
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "cross_attention_dim": 24,
    "num_layers": 2,
    "sample_size": 8,
    "caption_channels": WIDTH,
}
PIXART_REQUEST = {"max_sequence_length": LENGTH, "clean_caption": False, "use_resolution_binning": False}


@entry("PixArtAlphaPipeline")
def pixart_alpha() -> Entry:
    # The pipeline passes the picture's size to models of 1024 pixels only, that is, of this sample size.
    transformer = d.PixArtTransformer2DModel(**PIXART | {"sample_size": 128}, use_additional_conditions=True)
    scheduler = betas(d.DPMSolverMultistepScheduler)
    pipeline = d.PixArtAlphaPipeline(**t5(), vae=kl(), transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(**PIXART_REQUEST))


@entry("PixArtSigmaPipeline")
def pixart_sigma() -> Entry:
    transformer = d.PixArtTransformer2DModel(**PIXART, use_additional_conditions=False)
    scheduler = betas(d.DPMSolverMultistepScheduler)
    pipeline = d.PixArtSigmaPipeline(**t5(), vae=kl(), transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(**PIXART_REQUEST))


@entry("SanaPipeline")
def sana() -> Entry:
    transformer = d.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )
    vae = d.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    scheduler = d.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = d.SanaPipeline(**gemma(), vae=vae, transformer=transformer, scheduler=scheduler)
    size = {"height": 32, "width": 32, "use_resolution_binning": False, "max_sequence_length": LENGTH}
    return Entry(pipeline, texts(**size, complex_human_instruction=["improve the prompt", "prompt "]))


@entry("HunyuanDiTPipeline")
def hunyuan_dit() -> Entry:
    transformer = d.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
    )
    bert = t.BertConfig(
        vocab_size=64, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    components = {"text_encoder": t.BertModel(bert), "tokenizer": bert_tokenizer()}
    scheduler = betas(d.DDPMScheduler, prediction_type="v_prediction", clip_sample=False)
    pipeline = d.HunyuanDiTPipeline(
        vae=kl(),
        **components,
        **t5("_2"),
        transformer=transformer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return Entry(pipeline, texts(use_resolution_binning=False))


@entry("AuraFlowPipeline")
def aura_flow() -> Entry:
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=1.73)
    pipeline = d.AuraFlowPipeline(**t5(multilingual=True), vae=kl(), transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(max_sequence_length=LENGTH))


@entry("Lumina2Pipeline")
def lumina_2() -> Entry:
    transformer = d.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=6.0)
    pipeline = d.Lumina2Pipeline(transformer=transformer, scheduler=scheduler, vae=flow_kl(), **gemma())
    return Entry(pipeline, texts(max_sequence_length=2 * LENGTH, system_prompt="paint well"))


# Two stages, from a text to an image's embedding to a picture


@entry("KandinskyV22PriorPipeline")
def kandinsky_prior() -> Entry:
    prior = d.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, embedding_dim=WIDTH, num_embeddings=LENGTH
    )
    scheduler = d.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
    )
    pipeline = d.KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=clip_vision(),
        **clip(projected=True),
        scheduler=scheduler,
        image_processor=t.CLIPImageProcessor(size=16, crop_size=16),
    )
    return Entry(pipeline, without(texts(), *SIZE))


@entry("KandinskyV22Pipeline")
def kandinsky() -> Entry:
    denoiser = d.UNet2DConditionModel(
        **UNET,
        sample_size=8,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )
    movq = d.VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 32),
        latent_channels=4,
        num_vq_embeddings=12,
        norm_num_groups=8,
        vq_embed_dim=4,
        norm_type="spatial",
    )
    request = without(texts(), "prompt", "negative_prompt")
    embeddings = {"image_embeds": torch.randn(1, WIDTH), "negative_image_embeds": torch.randn(1, WIDTH)}
    scheduler = d.DDPMScheduler(beta_start=0.00085, beta_end=0.012, variance_type="learned_range", clip_sample=True)
    return Entry(d.KandinskyV22Pipeline(denoiser, scheduler, movq), request | embeddings)


@entry("StableCascadePriorPipeline")
def cascade_prior() -> Entry:
    prior = d.StableCascadeUNet(
        conditioning_dim=WIDTH,
        block_out_channels=(32, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=24,
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
        switch_level=(False,),
    )
    scheduler = d.DDPMWuerstchenScheduler()
    pipeline = d.StableCascadePriorPipeline(**clip(projected=True), prior=prior, scheduler=scheduler)
    return Entry(pipeline, texts(height=256, width=256))


@entry("StableCascadeDecoderPipeline")
def cascade_decoder() -> Entry:
    plain, attending = ("SDCascadeResBlock", "SDCascadeTimestepBlock"), ("SDCascadeAttnBlock",)
    decoder = d.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        patch_size=2,
        conditioning_dim=WIDTH,
        block_out_channels=(16, 32),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(3, 2),
        block_types_per_layer=(plain, plain + attending),
        clip_text_pooled_in_channels=WIDTH,
        effnet_in_channels=16,
        timestep_conditioning_type=("sca",),
    )
    pipeline = d.StableCascadeDecoderPipeline(
        decoder=decoder,
        **clip(projected=True),
        scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=8),
        latent_dim_scale=4.0,
    )
    return Entry(pipeline, without(texts(image_embeddings=torch.randn(1, 16, 4, 4)), *SIZE))


# Films and sound


@entry("WanPipeline")
def wan() -> Entry:
    transformer = d.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=WIDTH, ffn_dim=32, num_layers=2, rope_max_seq_len=32
    )
    vae = d.AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = d.WanPipeline(**t5(multilingual=True), vae=vae, scheduler=scheduler, transformer=transformer)
    return Entry(pipeline, texts(num_frames=5, max_sequence_length=LENGTH))


@entry("CogVideoXPipeline")
def cogvideox() -> Entry:
    transformer = d.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=LENGTH,
    )
    vae = d.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    scheduler = betas(
        d.CogVideoXDDIMScheduler, prediction_type="v_prediction", clip_sample=False, rescale_betas_zero_snr=True
    )
    pipeline = d.CogVideoXPipeline(**t5(), vae=vae, transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(num_frames=9, max_sequence_length=LENGTH))


@entry("LTXPipeline")
def ltx() -> Entry:
    transformer = d.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = d.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    pipeline = d.LTXPipeline(scheduler=scheduler, vae=vae, **t5(), transformer=transformer)
    return Entry(pipeline, texts(height=32, width=32, num_frames=9, max_sequence_length=LENGTH))


def audio(scheduler: Any) -> Entry:
    """Put a pipeline for two seconds of sound together."""
    transformer = d.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        cross_attention_input_dim=16,
        time_proj_dim=8,
        global_states_input_dim=32,
    )
    vae = d.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 2],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        sampling_rate=16,
    )
    projection = d.StableAudioProjectionModel(text_encoder_dim=WIDTH, conditioning_dim=16, min_value=0, max_value=32)
    pipeline = d.StableAudioPipeline(
        vae=vae, **t5(), projection_model=projection, transformer=transformer, scheduler=scheduler
    )
    return Entry(pipeline, without(texts(audio_end_in_s=2.0), *SIZE))


@entry("StableAudioPipeline")
def stable_audio() -> Entry:
    return audio(d.CosineDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500, solver_order=2))


@entry("StableAudioPipeline (EDM)")
def stable_audio_edm() -> Entry:
    scheduler = d.EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
    )
    return audio(scheduler)
