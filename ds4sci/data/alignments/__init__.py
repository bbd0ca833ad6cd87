"""Multiple sequence alignments and sequence profiles."""
