"""Language-model data: windows of sequences, packed rows, masking, batches."""
