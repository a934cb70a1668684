"""The only writer: random streams, blocks, shards, and the commit."""
