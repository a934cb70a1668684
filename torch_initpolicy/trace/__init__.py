"""Reads a model's data flow; decides nothing."""
