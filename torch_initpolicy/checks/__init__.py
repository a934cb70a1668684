"""Looks at a model; never writes."""
