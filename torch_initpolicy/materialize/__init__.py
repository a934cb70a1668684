"""A model built on the meta device becomes a real one."""
