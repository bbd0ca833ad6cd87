"""The machine that a run or a benchmark executes on: processor, available memory, provenance."""
