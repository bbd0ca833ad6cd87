"""Data selection and large batches: which samples a run trains on, and how a configuration follows its batch size."""
