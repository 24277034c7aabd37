"""Find structure in captured graphs: stages, blocks, skip connections."""
