"""Files → ``Record`` → ``Features`` → ``Batch``.

sources/    readers: mmCIF, PDB, A3M and Stockholm alignments, FASTA
chains      a prepared set of chains in one ``.npz``
build       a folder of structures (and alignments) → such a set, in parallel
split       train/validation by cluster of sequence identity; leakage check
features    one ``Record`` → one training example, after AlphaFold 2
batch       padding and stacking (the first module that knows torch)
loader      the order of the examples, a function of (seed, step) alone
"""
