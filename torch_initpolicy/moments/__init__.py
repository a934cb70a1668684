"""Second moments of the signal, propagated through a recorded graph."""
