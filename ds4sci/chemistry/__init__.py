"""Amino acids: residue codes, atom names, ideal geometry. Foundation of every other package; numpy only."""
