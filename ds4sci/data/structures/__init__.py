"""Protein structures: from mmCIF and PDB files to chain sets, features and batches."""
