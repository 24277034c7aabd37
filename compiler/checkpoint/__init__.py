"""Read checkpoints into diffusers pipelines."""
