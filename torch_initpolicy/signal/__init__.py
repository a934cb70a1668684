"""Runs a model once forward and once backward, and judges the signal."""
