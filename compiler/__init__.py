"""Turn a diffusion checkpoint into a bundle that runs without PyTorch."""
