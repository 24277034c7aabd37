"""Hold captured graphs: their export, their operators and their weights."""
