"""Words of k bases: laid end to end (stride = k, the default), or overlapping (stride < k)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds4sci.data.tokenizers.alphabets import BASES, FOLD, MAX_K, NUCLEOTIDES, SPECIALS, kmers, nucleotide_table
from ds4sci.data.tokenizers.schemes import Kmers, Letters, Scheme, Windows
from ds4sci.data.tokenizers.word_level import ENDS, SETTINGS, check_ends, folding, special_names, word_level, wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(k: int = 6, stride: int | None = None, ends: str = "none") -> PreTrainedTokenizerBase:
    """k 1–8; ``stride`` 1–k bases from one word to the next (default k); ``ends``: none, bos, eos or bos_eos.

    End to end, the vocabulary is ``NUCLEOTIDES`` and then all k-mers in base 4: a base that fits no word, and N, have
    tokens of their own. Overlapping, it is the special tokens and then all k-mers, and a window with an N is ``<unk>``.
    """
    stride = k if stride is None else stride
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k = {k}: expected 1 to {MAX_K} (the vocabulary has 4 to the power of k words)")
    if not 1 <= stride <= k:
        raise ValueError(f"stride = {stride} with k = {k}: expected 1 to k; a longer one would leave bases out")
    check_ends(ends)
    settings = {"kind": "kmer", "k": k, "stride": stride}
    if stride < k:
        return _overlapping(settings, ends)
    from tokenizers import Regex, pre_tokenizers

    cut = pre_tokenizers.Split(Regex(f"[{BASES}]{{{k}}}|(?m:.)"), "isolated")
    # With k = 1 the words are the single bases, which have their ids already.
    vocabulary = [*NUCLEOTIDES, *(kmers(k) if k > 1 else [])]
    return wrapped(word_level(vocabulary, cut, normalizer=folding()), ends, settings)


def scheme(settings: dict[str, Any]) -> Scheme:
    """The rule of ``residue_encoder``."""
    k, stride = int(settings["k"]), int(settings["stride"])
    if stride < k:
        return Windows(k, stride)
    return Kmers(k, nucleotide_table()) if k > 1 else Letters(nucleotide_table())


def _overlapping(settings: dict[str, Any], ends: str) -> PreTrainedTokenizerBase:
    from ds4sci.data.tokenizers.overlapping import OverlappingKmerTokenizer

    before, behind = ENDS[ends]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        words = [*SPECIALS, *kmers(settings["k"])]
        file.write_text(json.dumps({token: i for i, token in enumerate(words)}), encoding="utf-8")
        return OverlappingKmerTokenizer(
            vocab_file=str(file),
            k=settings["k"],
            stride=settings["stride"],
            fold=FOLD,
            before=before,
            behind=behind,
            **special_names(),
            **{SETTINGS: settings},
        )
