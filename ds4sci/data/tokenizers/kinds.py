"""Tokenizer kinds of ds4sci: for each, a function that builds the tokenizer and one that builds its scheme.

``KINDS`` is the table of them. ``build`` makes a tokenizer of a kind, ``load`` reads any saved tokenizer. A dotted kind
(``my_lab.tokens``) is a module with a function ``build(**options)``. transformers is imported when a tokenizer is built
or loaded, not before.
"""

from __future__ import annotations

import importlib
import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ds4sci.data.tokenizers.schemes import Codons, NonOverlappingKmers, OverlappingKmers, PerResidue, TokenizationScheme
from ds4sci.data.tokenizers.vocabularies import (
    BASES,
    MAX_K,
    NUCLEOTIDE_REPLACEMENTS,
    NUCLEOTIDES,
    SPECIAL_TOKENS,
    kmers,
    nucleotide_table,
)
from ds4sci.data.tokenizers.word_level import (
    ENDS,
    SETTINGS,
    check_ends,
    nucleotide_normalizer,
    special_token_arguments,
    word_level,
    wrap_tokenizer,
)

if TYPE_CHECKING:
    from transformers import EsmTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def build_esm() -> EsmTokenizer:
    """The tokenizer of every ESM-2 model: 33 tokens, ``<cls>`` before a document and ``<eos>`` after it.

    Called on text, it merges adjacent unknown letters (lower-case letters among them) into one ``<unk>``.
    ``residue_encoder`` reads lower-case letters as upper-case ones and keeps one token per residue.
    """
    from transformers import EsmTokenizer
    from transformers.models.esm.configuration_esm import get_default_vocab_list

    with tempfile.TemporaryDirectory() as folder:  # EsmTokenizer takes a vocabulary file only, and reads it once
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(get_default_vocab_list()), encoding="utf-8")
        tokenizer = EsmTokenizer(str(file))
    # The file is gone; save_pretrained writes the vocabulary from memory.
    tokenizer.init_kwargs.pop("vocab_file", None)
    return tokenizer


def build_nucleotide(ends: str = "none") -> PreTrainedTokenizerFast:
    """One token per base: A C G T N. Ambiguity codes are N, U is T, case is ignored, any other letter is ``<unk>``.

    ``ends``: special tokens around a document: none, bos, eos or bos_eos.
    """
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")  # Oniguruma's m: a dot also matches a line end
    tokenizer = word_level(NUCLEOTIDES, split, normalizer=nucleotide_normalizer())
    return wrap_tokenizer(tokenizer, ends, {"kind": "nucleotide"})


def build_byte(ends: str = "none") -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8 text: id 5 + byte, after the five special tokens. Case and all signs are kept.

    ``ends``: special tokens around a document: none, bos, eos or bos_eos.
    """
    from tokenizers import Regex, decoders, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # A vocabulary is text, so bytes are written as GPT-2's stand-ins: printable ASCII stands for itself.
    stand_ins = bytes_to_unicode()
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex("."), "isolated"),
        ]
    )
    vocabulary = [*SPECIAL_TOKENS, *(stand_ins[byte] for byte in range(256))]
    return wrap_tokenizer(word_level(vocabulary, split, decoder=decoders.ByteLevel()), ends, {"kind": "byte"})


def build_kmer(k: int = 6, stride: int | None = None, ends: str = "none") -> PreTrainedTokenizerBase:
    """Words of k bases, end to end (``stride = k``, the default) or overlapping (``stride < k``).

    k       1–8
    stride  1–k, bases from the start of one word to the start of the next
    ends    special tokens around a document: none, bos, eos or bos_eos

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
        return _overlapping_kmers(settings, ends)
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(f"[{BASES}]{{{k}}}|(?m:.)"), "isolated")
    # With k = 1 the words are the single bases, which have their ids already.
    vocabulary = [*NUCLEOTIDES, *(kmers(k) if k > 1 else [])]
    return wrap_tokenizer(word_level(vocabulary, split, normalizer=nucleotide_normalizer()), ends, settings)


def _overlapping_kmers(settings: dict[str, Any], ends: str) -> PreTrainedTokenizerBase:
    from ds4sci.data.tokenizers.overlapping_kmers import OverlappingKmerTokenizer

    before, behind = ENDS[ends]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        words = [*SPECIAL_TOKENS, *kmers(settings["k"])]
        file.write_text(json.dumps({token: i for i, token in enumerate(words)}), encoding="utf-8")
        return OverlappingKmerTokenizer(
            vocab_file=str(file),
            k=settings["k"],
            stride=settings["stride"],
            fold=NUCLEOTIDE_REPLACEMENTS,
            before=before,
            behind=behind,
            **special_token_arguments(),
            **{SETTINGS: settings},
        )


def build_codon(frame: int = 0, genetic_code: int = 1, ends: str = "none") -> PreTrainedTokenizerFast:
    """One token per codon of a reading frame; stop codons are tokens like the others.

    frame         0, 1 or 2, letters before the first codon
    genetic_code  NCBI's number of the translation table (1 standard, 11 bacteria), for ``codon_amino_acids``
    ends          special tokens around a document: none, bos, eos or bos_eos

    An id encodes the three bases (5 + base-4 value), not the amino acid, so a model can be trained on genomes with
    different genetic codes. A codon with an N is ``<unk>``. One or two letters left over at the end are in no token.
    A special token written inside a text restarts the frame after it.
    """
    from tokenizers import Regex, pre_tokenizers

    if frame not in (0, 1, 2):
        raise ValueError(f"frame = {frame}: expected 0, 1 or 2 (letters before the first codon)")
    _codon_table(genetic_code)
    # `invert` makes `removed` drop what lies between the matches and keep the matches.
    steps = [pre_tokenizers.Split(Regex("(?m:...)"), "removed", invert=True)]
    if frame:
        steps.insert(0, pre_tokenizers.Split(Regex(rf"\A(?m:.{{1,{frame}}})"), "removed"))
    settings = {"kind": "codon", "frame": frame, "genetic_code": genetic_code}
    vocabulary = [*SPECIAL_TOKENS, *kmers(3)]
    tokenizer = word_level(vocabulary, pre_tokenizers.Sequence(steps), normalizer=nucleotide_normalizer())
    return wrap_tokenizer(tokenizer, ends, settings)


def codon_amino_acids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """uint8 [vocabulary]: the ASCII letter of each token's amino acid, ``*`` for a stop, 0 for a special token.

    A codon that a translation table reads both ways (27, 28, 31) counts as its amino acid. ``ValueError`` for a
    tokenizer of another kind.
    """
    settings = tokenizer.init_kwargs.get(SETTINGS, {})
    if settings.get("kind") != "codon":
        raise ValueError("codon_amino_acids: expected a tokenizer of kind 'codon' (or one saved and loaded again)")
    table = _codon_table(int(settings["genetic_code"]))
    amino_acids = np.zeros(len(SPECIAL_TOKENS) + 64, np.uint8)
    for i, codon in enumerate(kmers(3), start=len(SPECIAL_TOKENS)):
        amino_acids[i] = ord(table.forward_table.get(codon, "*"))
    return amino_acids


def _codon_table(number: int) -> Any:
    from Bio.Data import CodonTable

    known = CodonTable.unambiguous_dna_by_id
    if number not in known:
        raise ValueError(f"genetic_code = {number}: NCBI has no such table; expected one of {sorted(known)}")
    return known[number]


def _kmer_scheme(settings: Mapping[str, Any]) -> TokenizationScheme:
    k, stride = int(settings["k"]), int(settings["stride"])
    if stride < k:
        return OverlappingKmers(k, stride)
    return NonOverlappingKmers(k, nucleotide_table()) if k > 1 else PerResidue(nucleotide_table())


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer.

    build           function (**options) → tokenizer
    scheme          function (settings saved with the tokenizer) → ``TokenizationScheme``; None if nothing is saved
    sample_letters  letters on which ``residue_encoder`` compares the scheme with the tokenizer
    """

    build: Callable[..., PreTrainedTokenizerBase]
    scheme: Callable[[Mapping[str, Any]], TokenizationScheme] | None = None
    sample_letters: str = "ACGT" * 8 + "acgtuUNnRYE-"


KINDS: dict[str, Kind] = {
    "esm": Kind(build_esm),
    "nucleotide": Kind(build_nucleotide, lambda settings: PerResidue(nucleotide_table())),
    "byte": Kind(
        build_byte,
        lambda settings: PerResidue(np.arange(256, dtype=np.int32) + len(SPECIAL_TOKENS)),
        sample_letters=bytes(range(33, 127)).decode(),
    ),
    "kmer": Kind(build_kmer, _kmer_scheme),
    "codon": Kind(build_codon, lambda settings: Codons(int(settings["frame"]))),
}
"""``tokenizer.kind`` of a run file → how it is built."""


def build(kind: str, **options: Any) -> PreTrainedTokenizerBase:
    """Build a tokenizer of ``kind``: a key of ``KINDS``, or a dotted module with a function ``build``.

    ``ValueError`` for an unknown kind, an option that the kind does not have, and a value that it does not accept.
    """
    if kind in KINDS:
        builder: Callable[..., PreTrainedTokenizerBase] = KINDS[kind].build
    elif "." in kind:
        builder = importlib.import_module(kind).build
    else:
        raise ValueError(
            f"no tokenizer kind {kind!r}; expected one of {', '.join(KINDS)}, or a dotted module with a build()"
        )
    parameters = inspect.signature(builder).parameters
    for name in options:
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            expected = f"it has {', '.join(parameters)}" if parameters else "it has none"
            raise ValueError(f"tokenizer kind {kind!r} has no option {name!r}; {expected}")
    return builder(**options)


def load(name_or_folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved in a folder, or that of a hub model. Code in the folder is not run.

    ``ValueError`` for a folder without a tokenizer, ``OSError`` from transformers for a name that is neither on the hub
    nor in its cache.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        config = folder / "tokenizer_config.json"
        if not config.exists() and not (folder / "tokenizer.json").exists():
            raise ValueError(
                f"{folder}: no tokenizer_config.json or tokenizer.json; save the tokenizer there with save_pretrained"
            )
        try:
            settings = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        except ValueError as error:
            raise ValueError(f"{config}: not JSON ({error}); save the tokenizer again") from None
        if settings.get("tokenizer_class") == "OverlappingKmerTokenizer":
            from ds4sci.data.tokenizers.overlapping_kmers import OverlappingKmerTokenizer

            return OverlappingKmerTokenizer.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(name_or_folder))
