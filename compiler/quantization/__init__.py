"""Hold what the techniques of quantization share: formats, plans, scales, errors."""
