"""Compares how two models start: as distributions, without seeds."""
