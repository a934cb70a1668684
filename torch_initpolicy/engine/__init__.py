"""From wish to tensors."""
