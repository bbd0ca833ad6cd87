"""Files → ``Record`` → ``Features`` → ``Batch``.

sources/    readers: mmCIF, PDB, A3M and Stockholm alignments, FASTA
chains      a prepared set of chains in one ``.npz``; packing makes its arrays
build       a folder of structures (and alignments) → such a set; selection says which chains, workers run the processes
split       train/validation by cluster of sequence identity, leakage check; identity finds the pairs, components groups
sequences/  letters alone, by the million: FASTA, FASTQ, GenBank → a memory-mapped store, its splits
letters     alphabets · profile: sequence profiles · secondary: DSSP states from coordinates
tokenizers  letters → ids of language models · sequence_transform: the other strand, weights of residues
features    one ``Record`` → one training example, after AlphaFold 2
batch       padding and stacking (the first module that knows torch)
loader      the order of the examples, a function of (seed, step) alone
writers     predicted structures → mmCIF and PDB
bench       entries a second of the parsers, samples a second of the loader
"""
