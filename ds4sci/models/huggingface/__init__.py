"""Hugging Face models without edits to their code: loading, packed attention, parts, and verification."""
