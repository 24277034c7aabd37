"""Every tolerance of the tests, each with the run that justified it."""

SCHEDULERS = 1e-5
"""A sampler's end, as a norm relative to diffusers', in float32. Thirteen schedulers, ten steps: at worst 1.2e-6."""

REWRITE = 1e-9
"""A rewritten program in float64, relative to the largest value met. 2,000 random programs: at worst 1e-13."""

REWRITE_SINGLE = 2e-6
"""A rewritten hand-written program in float32, relative. The samplers of test_unroll.py: at worst 4e-7."""

PICTURE = 1e-3
"""A picture on [0, 1] against diffusers', at the same latents: what the issue asks for."""

PICTURE_8BIT = 1
"""The same in steps of 8 bits: one step is where rounding falls to the other side."""

VERIFIED_PSNR = 60.0
"""What `diffc verify` must reach in dB between a bundle and its source: 1e-3 on [0, 1]."""

SCALARS = 2e-6
"""A polynomial that was fitted to float32 constants, far from where it was fitted. test_scalars.py: at worst 4e-7."""
