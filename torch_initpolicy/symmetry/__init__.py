"""Finds units that start identical and stay identical."""
