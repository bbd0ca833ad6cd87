"""One token a base: A C G T N. Ambiguity codes are N, U is T, small letters are capitals, anything else ``<unk>``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds4sci.data.tokenizers.alphabets import NUCLEOTIDES, nucleotide_table
from ds4sci.data.tokenizers.schemes import Letters
from ds4sci.data.tokenizers.word_level import folding, word_level, wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def build(ends: str = "none") -> PreTrainedTokenizerFast:
    """``ends``: none, bos, eos or bos_eos."""
    from tokenizers import Regex, pre_tokenizers

    cut = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")  # Oniguruma's m: a dot is also a line's end
    return wrapped(word_level(NUCLEOTIDES, cut, normalizer=folding()), ends, {"kind": "nucleotide"})


def scheme(settings: dict[str, Any]) -> Letters:
    """The rule of ``residue_encoder``."""
    return Letters(nucleotide_table())
