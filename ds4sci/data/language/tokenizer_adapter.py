"""Adapter between a Hugging Face tokenizer and the rows of a language model."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np

from ds4sci.data import tokenizers
from ds4sci.data.sequences.alphabet import PROTEIN
from ds4sci.data.tokenizers.schemes import FixedStride
from ds4sci.types import RESIDUES


class TokenizerAdapter:
    """A tokenizer as rows need it.

    hf_tokenizer   of the Hugging Face API; what is saved with the model
    vocab_size  its tokens
    pad_id, mask_id   mask_id is −1 for a tokenizer without one
    """

    def __init__(self, tokenizer: Any) -> None:
        self.hf_tokenizer = tokenizer
        self.encoder = tokenizers.residue_encoder(tokenizer)
        self.vocab_size = len(tokenizer)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
        self.mask_id = int(tokenizer.mask_token_id) if tokenizer.mask_token_id is not None else -1
        self.num_prefix_tokens = len(self.encoder.prefix)
        self.num_special_tokens = self.num_prefix_tokens + len(self.encoder.suffix)
        self._unknown = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)

    @property
    def special_ids(self) -> dict[str, int]:
        """``pad_token_id`` and its like, for a new model's config."""
        found = {
            f"{name}_token_id": getattr(self.hf_tokenizer, f"{name}_token_id") for name in ("pad", "mask", "bos", "eos")
        }
        return {name: int(value) for name, value in found.items() if value is not None}

    @cached_property
    def tokens(self) -> list[str]:
        """Each token's text."""
        return [str(name) for name in self.hf_tokenizer.convert_ids_to_tokens(range(self.vocab_size))]

    @property
    def alphabet(self) -> str | None:
        """``dna`` where all tokens are of bases, ``protein`` where they are amino acids, else None."""
        letters = {*"".join(name for name in self.tokens if name.isascii() and name.isalpha())}
        if letters and letters <= {*"ACGTUN"}:
            return "dna"
        return "protein" if {*RESIDUES} <= letters <= {*PROTEIN.letters} else None

    @cached_property
    def residue_ids(self) -> np.ndarray:
        """int64: ids that stand for residues, which a masked token may be replaced by."""
        special = set(self.hf_tokenizer.all_special_ids)
        plain = [i for i in range(self.vocab_size) if i not in special]
        amino = [i for i in plain if self.tokens[i] in [*RESIDUES]]
        return np.array(amino if len(amino) == len(RESIDUES) else plain, dtype=np.int64)

    def encode(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, first residue, residues) of every token of a document; special tokens stand for 0 residues."""
        ids, start, size = self.encoder.encode(letters)
        around = (self.num_prefix_tokens, self.num_special_tokens - self.num_prefix_tokens)
        return self.encoder.wrap(ids).astype(np.int64), np.pad(start, around), np.pad(size, around)

    @property
    def fixed_stride(self) -> FixedStride | None:
        """See ``ResidueEncoder.fixed_stride``."""
        return self.encoder.fixed_stride

    def fingerprint(self) -> str:
        """What the tokenizer does, as a hash."""
        own = getattr(self.hf_tokenizer, "backend_tokenizer", None)
        what = own.to_str() if own is not None else repr(sorted(self.hf_tokenizer.get_vocab().items()))
        return hashlib.sha256(f"{type(self.hf_tokenizer).__name__} {what}".encode()).hexdigest()

    def is_unknown(self, ids: np.ndarray) -> np.ndarray:
        """bool: which of ``ids`` are ``<unk>``."""
        return np.asarray(ids == self._unknown)


def open_tokenizer(model: str | None, options: dict[str, Any], *, causal: bool) -> TokenizerAdapter:
    """The tokenizer of a loaded model, or a new one of ``options`` (``kind`` and its own).

    Raises ValueError where neither says which, both do, or a masked model's tokenizer has no mask token.
    """
    if model is not None and not options:
        found = tokenizers.load(model)
    elif options:
        given = dict(options)
        if "kind" not in given:
            raise ValueError(f"data.tokenizer: it needs kind, one of {', '.join(tokenizers.KINDS)}")
        found = tokenizers.build(given.pop("kind"), **given)
    else:
        raise ValueError('data.tokenizer: a new model needs one, such as tokenizer = {kind = "esm"}')
    one = TokenizerAdapter(found)
    if not causal and one.mask_id < 0:
        raise ValueError(
            f"{type(found).__name__} has no mask token, which masked_lm needs; take causal_lm, or another one"
        )
    return one
