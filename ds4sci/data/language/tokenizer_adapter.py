"""Adapter from a Hugging Face tokenizer to the interface that windows, rows and batches use."""

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
    """A tokenizer together with its residue encoder.

    hf_tokenizer        the Hugging Face tokenizer, which is saved with the model
    encoder             ``ResidueEncoder`` of the tokenizer
    vocab_size          number of tokens, added tokens included
    pad_id, mask_id     ids of the special tokens; ``mask_id`` is −1 if the tokenizer has no mask token
    num_prefix_tokens   special tokens before a document
    num_special_tokens  special tokens before and after a document
    """

    def __init__(self, tokenizer: Any) -> None:
        self.hf_tokenizer = tokenizer
        self.encoder = tokenizers.residue_encoder(tokenizer)
        self.vocab_size = len(tokenizer)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
        self.mask_id = int(tokenizer.mask_token_id) if tokenizer.mask_token_id is not None else -1
        self.num_prefix_tokens = len(self.encoder.prefix)
        self.num_special_tokens = self.num_prefix_tokens + len(self.encoder.suffix)
        self._unk_id = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)

    @property
    def special_ids(self) -> dict[str, int]:
        """``pad_token_id``, ``mask_token_id`` …, for the config of a new model."""
        ids = {f"{name}_token_id": getattr(self.hf_tokenizer, f"{name}_token_id") for name in _SPECIAL_NAMES}
        return {name: int(value) for name, value in ids.items() if value is not None}

    @cached_property
    def tokens(self) -> list[str]:
        """Text of each token, by id."""
        return [str(token) for token in self.hf_tokenizer.convert_ids_to_tokens(range(self.vocab_size))]

    @property
    def alphabet(self) -> str | None:
        """``dna`` if all tokens consist of bases, ``protein`` if they consist of amino acids, otherwise None."""
        letters = {*"".join(token for token in self.tokens if token.isascii() and token.isalpha())}
        if letters and letters <= {*"ACGTUN"}:
            return "dna"
        return "protein" if {*RESIDUES} <= letters <= {*PROTEIN.letters} else None

    @cached_property
    def residue_ids(self) -> np.ndarray:
        """int64: ids of residue tokens, from which random replacements of masked tokens are drawn."""
        special = set(self.hf_tokenizer.all_special_ids)
        plain = [i for i in range(self.vocab_size) if i not in special]
        amino_acids = [i for i in plain if self.tokens[i] in [*RESIDUES]]
        return np.array(amino_acids if len(amino_acids) == len(RESIDUES) else plain, dtype=np.int64)

    def encode(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, start, size) of all tokens of a document; special tokens have size 0.

        ``start`` is the first residue of a token and ``size`` its number of residues.
        """
        ids, start, size = self.encoder.encode(letters)
        padding = (self.num_prefix_tokens, self.num_special_tokens - self.num_prefix_tokens)
        return self.encoder.wrap(ids).astype(np.int64), np.pad(start, padding), np.pad(size, padding)

    @property
    def fixed_stride(self) -> FixedStride | None:
        """See ``ResidueEncoder.fixed_stride``."""
        return self.encoder.fixed_stride

    def fingerprint(self) -> str:
        """Hash of the tokenizer's behaviour, for caches."""
        backend = getattr(self.hf_tokenizer, "backend_tokenizer", None)
        state = backend.to_str() if backend is not None else repr(sorted(self.hf_tokenizer.get_vocab().items()))
        return hashlib.sha256(f"{type(self.hf_tokenizer).__name__} {state}".encode()).hexdigest()

    def is_unknown(self, ids: np.ndarray) -> np.ndarray:
        """bool: which of ``ids`` are ``<unk>``."""
        return np.asarray(ids == self._unk_id)


_SPECIAL_NAMES = ("pad", "mask", "bos", "eos")


def open_tokenizer(model: str | None, options: dict[str, Any], *, causal: bool) -> TokenizerAdapter:
    """The tokenizer of the model folder ``model``, or a new one built from ``options`` (``kind`` and its own options).

    Raises ValueError if neither is given, or if a masked model's tokenizer has no mask token.
    """
    if model is not None and not options:
        tokenizer = tokenizers.load(model)
    elif options:
        remaining = dict(options)
        if "kind" not in remaining:
            raise ValueError(f"data.tokenizer: kind is missing; expected one of {', '.join(tokenizers.KINDS)}")
        tokenizer = tokenizers.build(remaining.pop("kind"), **remaining)
    else:
        raise ValueError('data.tokenizer: a new model needs a tokenizer, such as tokenizer = {kind = "esm"}')
    adapter = TokenizerAdapter(tokenizer)
    if not causal and adapter.mask_id < 0:
        raise ValueError(
            f"data.tokenizer: {type(tokenizer).__name__} has no mask token, which task masked_lm requires; use task "
            "causal_lm, or another tokenizer"
        )
    return adapter
