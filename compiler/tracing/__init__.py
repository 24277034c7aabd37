"""Run a pipeline on symbolic tensors and record it as a program."""
