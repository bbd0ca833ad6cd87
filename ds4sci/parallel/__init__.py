"""Several processes for one sequence: who works with whom, and the exchanges that have gradients."""
