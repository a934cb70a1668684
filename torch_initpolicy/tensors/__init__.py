"""Shapes, tensors and single layers, not a whole model."""
