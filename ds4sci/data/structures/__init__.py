"""Protein structures: mmCIF and PDB files to chain sets, features and batches."""
