"""The machine a run or a benchmark executes on: what it is, and the memory that is left."""
