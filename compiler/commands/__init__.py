"""Implement the commands of diffc."""
