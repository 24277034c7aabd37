"""Plan quantization, and write plans into graphs: the shared parts of the techniques."""
