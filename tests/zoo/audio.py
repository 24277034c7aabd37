"""Assemble AudioLDM, MusicLDM, ACE-Step and LongCat's audio."""

from typing import Any

import diffusers as d
import transformers as t
from tokenizers.pre_tokenizers import ByteLevel

from tests.zoo.components import UNET, amplified, kl, qwen_3, t5
from tests.zoo.entry import LENGTH, SIZE, WIDTH, Entry, entry, texts, without


def roberta_tokenizer() -> t.RobertaTokenizer:
    """Make a byte-level BPE that knows every byte."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    return t.RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH)


def clap_text(tokenizer: t.RobertaTokenizer) -> dict[str, Any]:
    """Describe the text half of CLAP."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
        "max_position_embeddings": LENGTH + 2,
        "pad_token_id": tokenizer.pad_token_id,
    }


def clap_audio() -> dict[str, Any]:
    """Describe the audio half of CLAP."""
    return {
        "spec_size": 8,
        "window_size": 4,
        "num_mel_bins": 8,
        "patch_stride": [2, 2],
        "patch_size": 2,
        "patch_embeds_hidden_size": 4,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "projection_dim": WIDTH,
        "drop_path_rate": 0.0,
    }


def vocoder() -> t.SpeechT5HifiGan:
    """Make a vocoder of eight frequencies."""
    config = t.SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=1600,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3, 3],
        resblock_dilation_sizes=[[1, 3], [1, 3]],
        normalize_before=False,
        initializer_range=0.3,
    )
    return t.SpeechT5HifiGan(config)


def ddim() -> d.DDIMScheduler:
    """Make the scheduler of AudioLDM."""
    return d.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def denoiser() -> d.UNet2DConditionModel:
    """Make a UNet that a vector of the whole text conditions."""
    settings = {key: value for key, value in UNET.items() if key != "cross_attention_dim"}
    return d.UNet2DConditionModel(
        **settings,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(16, 32),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=WIDTH,
        class_embeddings_concat=True,
    )


@entry("AudioLDMPipeline")
def audio_ldm() -> Entry:
    tokenizer = roberta_tokenizer()
    encoder = t.ClapTextModelWithProjection(t.ClapTextConfig(**clap_text(tokenizer)))
    parts = {
        "vae": kl(in_channels=1, out_channels=1),
        "unet": amplified(denoiser()),
        "vocoder": vocoder(),
        "scheduler": ddim(),
    }
    pipeline = d.AudioLDMPipeline(text_encoder=encoder, tokenizer=tokenizer, **parts)
    return Entry(pipeline, without(texts(audio_length_in_s=0.5), *SIZE) | {"output_type": "np"})


@entry("AudioLDM2Pipeline", refused="aten.equal.default reads the value of a symbolic tensor")
def audio_ldm_2() -> Entry:
    tokenizer = roberta_tokenizer()
    config = t.ClapConfig(text_config=clap_text(tokenizer), audio_config=clap_audio(), projection_dim=WIDTH)
    language = t.GPT2Config(n_embd=16, n_head=2, n_layer=1, n_inner=37, vocab_size=64, n_positions=64)
    settings = {key: value for key, value in UNET.items() if key not in ("cross_attention_dim", "attention_head_dim")}
    unet = d.AudioLDM2UNet2DConditionModel(
        **settings,
        sample_size=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=((None, 16, WIDTH), (None, 16, WIDTH)),
    )
    pipeline = d.AudioLDM2Pipeline(
        vae=kl(in_channels=1, out_channels=1),
        text_encoder=t.ClapModel(config),
        **t5("_2"),
        projection_model=d.AudioLDM2ProjectionModel(
            text_encoder_dim=WIDTH, text_encoder_1_dim=WIDTH, langauge_model_dim=16
        ),
        language_model=t.GPT2LMHeadModel(language),
        tokenizer=tokenizer,
        feature_extractor=t.ClapFeatureExtractor(feature_size=8),
        unet=unet,
        scheduler=ddim(),
        vocoder=vocoder(),
    )
    request = texts(audio_length_in_s=0.5, max_new_tokens=4)
    return Entry(pipeline, without(request, *SIZE) | {"output_type": "np"})


def oobleck(sampling_rate: int = 16) -> d.AutoencoderOobleck:
    """Make an autoencoder of audio, of factor 4."""
    return d.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 2],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        sampling_rate=sampling_rate,
    )


@entry("AceStepPipeline", refused="aten._local_scalar_dense.default reads the value of a symbolic tensor")
def ace_step() -> Entry:
    from diffusers.pipelines.ace_step import AceStepConditionEncoder  # not among the library's names

    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    condition = AceStepConditionEncoder(
        **shape,
        text_hidden_dim=WIDTH,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        sliding_window=8,
    )
    transformer = d.AceStepTransformer1DModel(
        **shape, num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4, sliding_window=8
    )
    pipeline = d.AceStepPipeline(
        vae=oobleck(),
        **qwen_3(),
        transformer=transformer,
        condition_encoder=condition,
        scheduler=d.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    request = texts(lyrics="la la", audio_duration=2.0, max_text_length=64, max_lyric_length=32)
    return Entry(pipeline, without(request, "negative_prompt", *SIZE))


@entry("LongCatAudioDiTPipeline", refused="a text of 1 tokens, and this program takes 2 to")
def longcat_audio() -> Entry:
    transformer = d.LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=2, dit_heads=4, dit_text_dim=WIDTH, latent_dim=4, text_conv=False
    )
    vae = d.LongCatAudioDiTVae(
        channels=8,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=4,
        encoder_latent_dim=8,
        downsampling_ratio=2,
        sample_rate=32,
    )
    pipeline = d.LongCatAudioDiTPipeline(vae=vae, **t5(multilingual=True), transformer=transformer)
    return Entry(pipeline, without(texts(audio_duration_s=1.0), *SIZE))
