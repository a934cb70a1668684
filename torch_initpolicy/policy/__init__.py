"""What the user wants, as values."""
