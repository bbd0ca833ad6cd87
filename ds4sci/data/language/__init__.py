"""Language-model data: windows of sequences, packed rows, masking, batches. README.md describes the data flow."""
