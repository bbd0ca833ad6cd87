"""Monitor of a run: what the machine does during each stage, recorded by every rank and merged into one timeline."""
