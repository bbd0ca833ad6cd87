"""Sequence parallelism: process groups, attention over sharded rows of tokens, and exchanges of rows and columns."""
