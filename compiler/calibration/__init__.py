"""Run programs on prompts and observe their values."""
