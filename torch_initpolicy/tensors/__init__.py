"""Shapes, tensors and single layers; has never heard of a whole model."""
