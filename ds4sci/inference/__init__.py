"""Uses of a trained run: evaluation, structure prediction, embeddings, export."""
