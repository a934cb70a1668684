"""Model-wide weight initialisation policies for PyTorch."""
