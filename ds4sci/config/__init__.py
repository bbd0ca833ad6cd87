"""Configuration: the run file (TOML), the DeepSpeed JSON, error messages, provenance of a run. No torch."""
