"""Residues → a tokenizer's ids without text: the way from a store of uint8 letters into a batch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ds4sci.data.tokenizers.schemes import Letters, Period, Scheme
from ds4sci.types import RESIDUES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PRINTABLE = bytes(range(33, 127)).decode()
_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SAMPLES, _SAMPLE_LENGTH = 256, 64


@dataclass(frozen=True)
class ResidueEncoder:
    """What ``residue_encoder`` found out about a tokenizer.

    scheme          the rule from letters to tokens; ``Letters`` where every residue has a token of its own
    prefix, suffix  int32, the special tokens that the tokenizer puts before and behind a document
    """

    scheme: Scheme
    prefix: np.ndarray
    suffix: np.ndarray

    @property
    def one_per_residue(self) -> bool:
        """Whether token i is residue i."""
        return isinstance(self.scheme, Letters)

    def encode_residues(self, letters: np.ndarray) -> np.ndarray:
        """int32 [t] ids of uint8 [n] ASCII letters, without special tokens.

        Equal to calling the tokenizer on the same text, with two exceptions: what spells a special token (``<pad>``) is
        letters here, and a small letter that the tokenizer does not know is read as its capital: case is the soft mask,
        which has its own array. ``ValueError``: another dtype, a byte without a token.
        """
        return self.scheme.ids(_checked(letters))

    def encode(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, start, length): ``encode_residues`` and ``token_spans`` of one reading."""
        letters = _checked(letters)
        if isinstance(self.scheme, Called):
            return self.scheme.encode(letters)
        return self.scheme.ids(letters), *self.scheme.spans(letters)

    @property
    def period(self) -> Period | None:
        """Where tokens lie if that depends on the number of residues alone; None where it depends on the letters."""
        return getattr(self.scheme, "period", None)

    @cached_property
    def boundaries_depend_on_letters(self) -> bool:
        """Whether sequences of one length have tokens of different lengths, depending on which letters they have.

        True of learnt vocabularies (BPE, unigram, WordPiece): there the tokens beside a masked one say how long it is
        and what it cannot be. Looked at on 32 sequences drawn at random from the letters that the tokenizer knows.
        """
        if not isinstance(self.scheme, Called):
            return False
        unknown = self.scheme.tokenizer.unk_token_id
        known = "".join(letter for letter in RESIDUES if unknown not in _call(self.scheme.tokenizer, letter))
        if not set(known) - set("ACGTN"):
            known = "ACGT"
        rng = np.random.default_rng(0)
        drawn = rng.choice(np.frombuffer(known.encode(), np.uint8), (32, _SAMPLE_LENGTH))
        return len({self.token_spans(one)[1].tobytes() for one in drawn}) > 1

    def token_spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(start, length), int64 [t] each: token i stands for ``letters[start[i] : start[i] + length[i]]``."""
        return self.scheme.spans(_checked(letters))

    def wrap(self, ids: np.ndarray) -> np.ndarray:
        """int32 [t + ends]: a document's ids with the special tokens around it."""
        return np.concatenate([self.prefix, ids.astype(np.int32, copy=False), self.suffix])


@dataclass(frozen=True)
class Called:
    """The tokenizer itself, where no rule gives its ids: a learnt vocabulary, or one that we do not know."""

    tokenizer: PreTrainedTokenizerBase

    def ids(self, letters: np.ndarray) -> np.ndarray:
        return np.asarray(_call(self.tokenizer, _text(letters)), np.int32)

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.encode(letters)[1:]

    def encode(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, start, length) of the tokens, side by side: no residue is in two of them.

        ``ValueError`` where the tokenizer, being written in Python, has no offsets and its tokens do not add up.
        """
        text = _text(letters)
        if self.tokenizer.is_fast:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            bounds = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
            # SentencePiece's mark of a word's beginning says that it stands for the letter behind it.
            bounds[:-1, 1] = np.minimum(bounds[:-1, 1], bounds[1:, 0])
            return np.asarray(found["input_ids"], np.int32), bounds[:, 0], bounds[:, 1] - bounds[:, 0]
        tokens = self.tokenizer.tokenize(text)
        if "".join(tokens) != text:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not say which residues its tokens stand for: it has no offsets,"
                f" and its tokens do not spell the sequence ({text[:20]!r}…); use a tokenizer of the tokenizers library"
            )
        lengths = np.array([len(token) for token in tokens], np.int64)
        ids = np.asarray(self.tokenizer.convert_tokens_to_ids(tokens), np.int32)
        return ids, np.cumsum(lengths) - lengths, lengths


def residue_encoder(tokenizer: PreTrainedTokenizerBase) -> ResidueEncoder:
    """The fastest way from letters to the ids of ``tokenizer`` (ours or any other) that gives the same ids.

    The rule of one of our kinds where the tokenizer has its settings with it; else a table of 256 entries where every
    letter proves to be a token of its own; else the tokenizer is called. A rule or table is compared with the
    tokenizer on 16,000 letters drawn at random before it is used. A tokenizer that knows letters only with spaces
    between them (ProtBert, ProtT5) gets the table too: called on a sequence as it is, it would say ``[UNK]``.
    """
    from ds4sci.data.tokenizers import KINDS
    from ds4sci.data.tokenizers.word_level import SETTINGS

    prefix, suffix = _ends(tokenizer)
    settings: dict[str, Any] = tokenizer.init_kwargs.get(SETTINGS) or {}
    found: Scheme | None = None
    if settings.get("kind") in KINDS:
        module = importlib.import_module(f"ds4sci.data.tokenizers.{settings['kind']}")
        found = module.scheme(settings)
        letters = _PRINTABLE if settings["kind"] == "byte" else "ACGT" * 8 + "acgtuUNnRYE-"
    else:
        found, letters = _letter_table(tokenizer)
    if found is None or not (
        _agrees(tokenizer, found, letters) or (not settings and _wants_spaces(tokenizer, found, letters))
    ):
        found = Called(tokenizer)
    return ResidueEncoder(found, np.asarray(prefix, np.int32), np.asarray(suffix, np.int32))


def _letter_table(tokenizer: PreTrainedTokenizerBase) -> tuple[Letters | None, str]:
    """A table of what each letter gives alone, and the letters that it knows; None where a capital is not one token."""
    unknown = tokenizer.unk_token_id
    table = np.full(256, -1 if unknown is None else unknown, np.int32)
    known = ""
    for letter in _PRINTABLE:
        ids = _call(tokenizer, letter)
        if len(ids) == 1 and ids[0] != unknown:
            table[ord(letter)], known = ids[0], known + letter
        elif letter in _CAPITALS and len(ids) != 1:
            return None, known
    for letter in _CAPITALS:
        if letter in known and letter.lower() not in known:
            table[ord(letter.lower())] = table[ord(letter)]
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    joined = (token for token in tokenizer.get_vocab() if token not in special and len(token) > 1)
    if not known or any(set(token) <= set(known) for token in joined):
        return None, known
    return Letters(table), known


def _agrees(tokenizer: PreTrainedTokenizerBase, scheme: Scheme, letters: str, separator: str = "") -> bool:
    """Whether ``scheme`` gives the tokenizer's ids of random strings of ``letters``, set apart by ``separator``."""
    rng = np.random.default_rng(0)
    alphabet = np.frombuffer(letters.encode(), np.uint8)
    samples = [rng.choice(alphabet, int(n)) for n in rng.integers(1, 2 * _SAMPLE_LENGTH, _SAMPLES)]
    return all(_call(tokenizer, separator.join(_text(s))) == scheme.ids(s).tolist() for s in samples)


def _wants_spaces(tokenizer: PreTrainedTokenizerBase, scheme: Scheme, letters: str) -> bool:
    """Whether letters that it knows one by one become unknown when they stand together, and known again with spaces."""
    together = _call(tokenizer, letters)
    return tokenizer.unk_token_id in together and _agrees(tokenizer, scheme, letters, " ")


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and behind a document: what a text gains by them."""
    text = "ACGT" * 4  # letters of every alphabet, and enough of them for one k-mer or codon
    plain, ended = _call(tokenizer, text), _call(tokenizer, text, add_special_tokens=True)
    for start in range(len(ended) - len(plain) + 1):
        if ended[start : start + len(plain)] == plain:
            return ended[:start], ended[start + len(plain) :]
    raise ValueError(f"the tokenizer's special tokens change the text: {text!r} alone is {plain}, with them {ended}")


def _call(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])


def _text(letters: np.ndarray) -> str:
    try:
        return letters.tobytes().decode("ascii")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {letters[error.start]} at position {error.start} is no ASCII letter") from None


def _checked(letters: np.ndarray) -> np.ndarray:
    if letters.dtype != np.uint8 or letters.ndim != 1:
        raise ValueError(f"expected ASCII letters as uint8 [n]; got {letters.dtype} {list(letters.shape)}")
    return letters
