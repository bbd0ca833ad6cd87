"""Sequence parallelism: process groups, and attention over rows that are sharded over ranks."""
