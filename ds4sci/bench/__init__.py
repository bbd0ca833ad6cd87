"""Benchmarks: one module per benchmark. Results are JSON with machine, versions and commit."""
