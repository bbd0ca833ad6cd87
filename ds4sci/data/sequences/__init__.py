"""Sequence files → a memory-mapped store of residues: for language models, whose data are letters and millions of them.

build      FASTA, FASTQ, GenBank files → a store: ``index``
store      ``SequenceStore``: residues, names, masks of a record or a stretch of it
subset     records and parts of records → a new store · split: training and validation stores, leakage between them
layout     the files of a store
stream     a file as blocks of text · pieces: which format; fasta, fastq, genbank: its readers
part       one file's records, checked and written · alphabet: what letters may be · runs: masks · names: by hash
relatives  pairs of proteins that are alike, found by shared words
"""

from ds4sci.data.sequences.build import IndexSummary, index
from ds4sci.data.sequences.store import SequenceStore
from ds4sci.data.sequences.subset import Range, write_subset

__all__ = ["IndexSummary", "Range", "SequenceStore", "index", "write_subset"]
