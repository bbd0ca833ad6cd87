"""Files → ``Record`` → ``Features`` → ``Batch``; sequence files → ``SequenceStore`` → ``LanguageBatch``.

structures/    parsers of mmCIF and PDB, prepared chain sets (``.npz``), features, batches, writers
alignments/    A3M and Stockholm alignments, sequence profiles
sequences/     memory-mapped stores of proteins and genomes
tokenizers/    residues → token ids
language/      windows, packing, masking and batches of language models
clustering/    sequence identity, homology clusters, splits without leakage
loader         order of the examples, a function of (seed, step)
text_files     content of a file, plain or gzip · worker_pool  processes that survive a crash
"""
