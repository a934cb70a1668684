"""Layer-sequential unit variance (LSUV)."""
