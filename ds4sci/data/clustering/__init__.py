"""Sequence similarity, clustering, and training/validation splits without homologs."""
