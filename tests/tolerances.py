"""Every tolerance of the tests, each with the run that justified it."""

HALF = 5e-4
"""A number that is stored in 16 bits, relative: half a unit in the last of eleven places is 2^-11 = 4.9e-4."""

SCHEDULERS = 1e-5
"""A sampler's end, as a norm relative to diffusers', in float32. Thirteen schedulers, ten steps: at worst 1.2e-6."""

REWRITE = 1e-9
"""A rewritten program in float64, relative to the largest value met. 700 random programs: at worst 1.3e-15."""

REWRITE_SINGLE = 5e-7
"""A rewritten program written by hand, in float32, relative. test_recognize_linear.py: at worst 6.6e-8."""

PICTURE = 1e-3
"""A picture on [0, 1] against diffusers', at the same seed, 20 steps. test_parity.py: at worst 7e-5 before training."""

PROMPTS_APART = 1e-2
"""By how much images of two prompts must differ for a sweep to prove something: ten times PICTURE."""

PICTURE_OF_PROMPT = 1e-5
"""A tiny picture on [0, 1] against diffusers', whatever the prompt, 3 steps. test_prompts.py: at worst 8.4e-7."""

PICTURE_OF_NUMPY = 2e-6
"""A tiny program on [0, 1] against NumPy, sums in another order. runtime/engines/test_registry.py: at worst 2e-7."""

PICTURE_8BIT = 1
"""The same in steps of 8 bits: one step is where rounding falls to the other side."""

VERIFIED_PSNR = 80.0
"""What `diffc verify` must reach in dB, float32: the two examples gave 91 to 138 over three prompts."""

VERIFIED_PSNR_BF16 = 30.0
"""The same where OpenVINO computes in bfloat16 (ov-bf16). A tiny WanPipeline of the zoo: 35.5 dB,
most of it the decoder's; diffusers in bfloat16 is 48.3 dB from itself in float32."""

SCALARS = 5e-7
"""A polynomial that was fitted to float32 constants, far from where it was fitted. test_scalars.py: none differed."""

GRAPH = 1e-5
"""One graph in ONNX Runtime against torch, relative to the largest value.

backends/onnx/test_export.py: at worst 2e-6."""

STAGED = 1e-5
"""A staged program against what it was captured from, relative. 32 pipelines of the zoo: at worst 4.7e-6."""

ORDER = 0.15
"""A measured order of accuracy. schedulers/test_ghvb.py and test_hb.py: at worst 0.11 from the whole number."""

GRAM = 1e-3
"""A Gram matrix in float32: the error it foretells, relative, and the part of GPTQ's codes that differ from float64's.
test_gram.py: at worst 2e-6. test_gptq.py: none differed."""

GPTQ_GAIN = 2.5
"""What GPTQ must win over rounding to nearest, in dB of a layer's output.
test_gptq.py: 7.9 to 11.1, and 3.0 with four groups."""

CORRECTION_GAIN = 2.0
"""What corrected channels must win over rounding to nearest, in dB of the output of three layers that read numbers
above zero. test_decoupled_error_correction.py: 3.8 to 5.0."""

DRAWN = 0.06
"""A share of 200 draws, against what is likely: its standard deviation is 0.03 at most.
test_ptq4dm.py: at worst 0.052."""

SPLIT_GAIN = 6.0
"""What splitting a layer must win where half of its channels are 30 times larger, in dB. test_q_diffusion.py: 10.4."""

SMOOTHING_GAIN = 3.0
"""By how many dB balanced channels are rounded better. quantize/test_smoothquant.py: 6.3 to 8.6."""

SEARCH_LOSS = 0.2
"""What a search by some pieces and outputs may miss of the best, in dB. quantize/test_smoothquant.py: 0.0."""

PIECES = 0.5
"""A layer's error by pieces of its input against the whole graph's, in dB. test_layer_error.py: at most 0.40."""

BRANCH = 3e-4
"""What a branch leaves above what the best of its rank would, relative. quantize/test_svdquant.py: at most 4e-5."""

BRANCH_GAIN = 4.0
"""By how many dB four bits are better beside a branch. quantize/test_svdquant.py: 7.0 to 14.4."""

STEP_GAIN = 20.0
"""By how many dB scales for each step are better on ranges that drift. quantize/test_tfmq_dm.py: 35."""

STEP_RANGE = 1e-6
"""A range that a sample set, relative. quantize/test_tfmq_dm.py: at most 6e-8."""

SEARCHED_RANGE = 0.03
"""A range that was searched for, and its error, relative to the best: a search tries parts of 2.5 %.
test_rounding.py: at worst 0.0."""

RANGES_GAIN = 0.7
"""By how many dB ranges with other outliers are better apart. quantize/test_vidit_q.py: 1.5."""

LEARNED = 0.05
"""What learned rounding leaves of the way from the nearest to the best of all 256 ways, over 64 rows.
test_reconstruction.py: 0.007."""

ADAROUND_GAIN = 3.0
"""What learned rounding must win over rounding to nearest, in dB of the output. test_adaround.py: 4.4 to 6.9."""

ENGINE_SQNR = 120.0
"""A quantized layer in an engine against PyTorch, in dB. backends/onnx/test_quantized_ops.py: at least 126, float32
itself."""

NORMALIZED = 5e-5
"""Values normalized in float32 that lie 1e5 deviations from zero, against float64, relative to the largest.
backends/test_ort_dialect.py: at worst 5.9e-6."""

LEGALIZED = 2e-6
"""A product of quantized values as a dialect writes it against NumPy, relative to the largest value.
backends/onnx/test_dialect.py, test_cpu_dialect.py and backends/test_ort_dialect.py: at worst 3.5e-7."""

BLOCKS_IN_BYTES = 1e-3
"""The same where ONNX Runtime rounds the activation of a block by itself: a value between two may fall to either.
backends/test_ort_dialect.py: 1.7e-7, where none did."""

OPENVINO_SQNR = 25.0
"""The same where OpenVINO quantizes what it multiplies by itself, or rounds a scale in two steps.
backends/onnx/test_quantized_ops.py: at least 32.2."""

QUANTIZED_PSNR = 35.0
"""A picture in 8 bits against float32, in dB, two steps of a tiny UNet of random weights.
test_quantized_bundles.py: 41.9."""

CACHED_PSNR = 12.0
"""What DeepCache in every second of 2 or 4 steps must leave of a picture, in dB: with so few, steps differ much.
test_cached_bundles.py: 14.0 to 24.6."""

SAME_PSNR = 0.05
"""How far one PSNR may be from another of the same pictures by another engine, in dB. test_cached_bundles.py: 4e-5."""

CACHED = 3e-6
"""A cached program's last latents against diffusers' where blocks are skipped by hand, relative to the largest.
passes/cache/test_delta_dit.py: at worst 6e-7, where the reuse itself changes them by 4e-5 to 2e-2."""

PROFILE = 1e-4
"""Attention by its products against diffusers', relative. passes/cache/test_profiling_dit.py: less in three
pipelines, whose blocks differ by 1e-2."""

FITTED = 2e-4
"""What was fitted to features in float32 against NumPy's, and what is drawn with it, relative to the largest.
passes/cache/test_cachequant.py: 1.5e-4 for a fit, 1.4e-7 for what is drawn, where the reuse changes it by 9e-4."""

JUDGED = 0.1
"""By how many dB pictures of the runtime may be from PyTorch's judgement of a schedule.
cache/test_auto.py: at most 0.01."""

FLOAT16_SQNR = 55.0
"""A graph that computes in float16 against float32, in dB; numbers rounded to eleven bits are 66 dB from themselves.
passes/test_mixed_precision.py: at least 65.9; backends/onnx/test_typed.py: at least 61.8."""

BFLOAT16_SQNR = 35.0
"""The same in bfloat16, which has eight bits.
passes/test_mixed_precision.py: at least 48.5; backends/onnx/test_typed.py: 43.6."""

ROUNDED_SQNR = {"int8": 30.0, "e4m3": 24.0, "nvfp4": 14.0}
"""The same where activations are rounded to few bits: what 16 bits change may fall to the other side of a rounding.
backends/onnx/test_typed.py: at least 33.6, 27.8 and 17.1 in bfloat16; 36.7, 32.5 and 25.2 in float16."""

HALF_PSNR = 50.0
"""A picture of graphs in float16 against float32, in dB, two steps of a tiny pipeline. test_half_precision.py: 60."""

HALF_LOSS = 1.0
"""What a quantized denoiser in float16 may lose to itself in float32, in dB.

backends/onnx/test_typed.py: at most 0.58."""


TENSORRT_SQNR = {
    "fp32": 110,
    "fp16": 50,
    "bf16": 34,
    "w8a8": 26,
    "w4a16": 14,
    "w4a8": 14,
    "fp8": 17,
    "fp4": 11,
}
"""What TensorRT's builder is given, run by ONNX's reference, against float32, in dB: tiny denoisers whose layers are
rounded to nearest. backends/tensorrt/test_backend.py: at least 119, 54.4, 37.5, 28.8, 15.5, 15.5, 19.4 and 12.6 in
order."""

FOUR_BIT_PSNR = 24
"""A picture of a tiny UNet rounded to nearest in four bits against float32, in dB. test_engine_bundles.py: 27.6."""

LARGE_BYTES_SQNR = 12.0
"""A call of layers of 7 and 8 bits at the ends of their grids, in dB.
runtime/engines/test_registry.py: at least 16.1, and 4.2 where sums of two products are cut off at 16 bits."""

NOISE = 1e-6
"""A normal number against PyTorch's, whose vector functions differ in the last places from float64's, rounded.
runtime/test_rng.py and format/make_corpus.py: at worst 4.8e-7."""

FLOAT_CODES_SQNR = 27.0
"""A layer whose weight and activation are 8-bit floats (e4m3) against float32, in dB.
runtime/engines/test_ort.py: 29.7 in both dialects. Three layers with eight seeds each: 28.1 to 30.5."""
