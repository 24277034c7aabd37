"""Lower a program to the engines of one target each."""
