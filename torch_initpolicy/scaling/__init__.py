"""The coordinate check: whether activations and their changes stay as large when a model grows."""
