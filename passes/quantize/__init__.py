"""Quantize: one technique per file, each of which rewrites a plan and composes with the others."""
