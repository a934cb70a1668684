"""One thin file per library, imported only by name."""
