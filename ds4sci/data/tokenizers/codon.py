"""One token a codon, read from a frame; stop codons are tokens like the others.

An id says the three bases (5 + base-4 value), not the amino acid: a model can be trained on genomes of several genetic
codes. ``amino_acids`` tells what each codon means in the one that the tokenizer was built with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ds4sci.data.tokenizers.alphabets import SPECIALS, kmers
from ds4sci.data.tokenizers.schemes import Codons
from ds4sci.data.tokenizers.word_level import SETTINGS, folding, word_level, wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def build(frame: int = 0, genetic_code: int = 1, ends: str = "none") -> PreTrainedTokenizerFast:
    """``frame`` 0, 1 or 2 letters are passed over first; ``genetic_code`` is NCBI's number of the table (1 standard,
    11 bacteria); ``ends``: none, bos, eos or bos_eos. A codon with an N is ``<unk>``; one or two letters left over at
    the end are in no token. Special tokens written inside a text start the frame afresh behind them.
    """
    from tokenizers import Regex, pre_tokenizers

    if frame not in (0, 1, 2):
        raise ValueError(f"frame = {frame}: expected 0, 1 or 2 (letters before the first codon)")
    _table(genetic_code)
    # Of what the pattern matches nothing is cut away: inverted, `removed` drops what lies between the matches.
    steps = [pre_tokenizers.Split(Regex("(?m:...)"), "removed", invert=True)]
    if frame:
        steps.insert(0, pre_tokenizers.Split(Regex(rf"\A(?m:.{{1,{frame}}})"), "removed"))
    settings = {"kind": "codon", "frame": frame, "genetic_code": genetic_code}
    return wrapped(
        word_level([*SPECIALS, *kmers(3)], pre_tokenizers.Sequence(steps), normalizer=folding()), ends, settings
    )


def scheme(settings: dict[str, Any]) -> Codons:
    """The rule of ``residue_encoder``."""
    return Codons(int(settings["frame"]))


def amino_acids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """uint8 [vocabulary]: the ASCII letter of the amino acid of each token, ``*`` for a stop, 0 for a special token.

    A codon that a table reads both ways (27, 28, 31) counts as its amino acid. ``ValueError`` for another kind.
    """
    settings = tokenizer.init_kwargs.get(SETTINGS, {})
    if settings.get("kind") != "codon":
        raise ValueError("amino_acids: expected a tokenizer of kind 'codon' (or one saved and loaded again)")
    table = _table(int(settings["genetic_code"]))
    letters = np.zeros(len(SPECIALS) + 64, np.uint8)
    for i, codon in enumerate(kmers(3), start=len(SPECIALS)):
        letters[i] = ord(table.forward_table.get(codon, "*"))
    return letters


def _table(number: int) -> Any:
    from Bio.Data import CodonTable

    known = CodonTable.unambiguous_dna_by_id
    if number not in known:
        raise ValueError(f"genetic_code = {number}: NCBI has no such table; expected one of {sorted(known)}")
    return known[number]
