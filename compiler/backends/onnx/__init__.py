"""Lower graphs to ONNX."""
