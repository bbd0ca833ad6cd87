"""Amino acids: residue codes, atom names and ideal geometry. Requires only numpy."""
