"""Memory-mapped stores of protein and DNA sequences, for language models. README.md describes the data flow."""

from ds4sci.data.sequences.build import IndexSummary, index
from ds4sci.data.sequences.store import SequenceStore
from ds4sci.data.sequences.subset import Range, write_subset

__all__ = ["IndexSummary", "Range", "SequenceStore", "index", "write_subset"]
