"""ds4sci: train protein-structure models and science language models on DeepSpeed."""

__version__ = "0.2.0"
