"""Similarity of sequences, clusters, and training/validation splits without homologs."""
