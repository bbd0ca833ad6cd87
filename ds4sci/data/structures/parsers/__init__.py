"""Parsers of structure files. They return ``ds4sci.types.Record`` objects and do not import torch."""
