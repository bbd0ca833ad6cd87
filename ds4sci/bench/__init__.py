"""Benchmarks: one module per benchmark. ``registry`` finds them; results are JSON with machine, versions and commit."""
