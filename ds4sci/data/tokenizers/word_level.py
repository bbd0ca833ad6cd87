"""Tokenizers that ``tokenizer.json`` describes completely: letters are normalized, text is split, pieces are looked up.

``AutoTokenizer`` loads them anywhere, without ds4sci and without remote code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ds4sci.data.tokenizers.vocabularies import NUCLEOTIDE_REPLACEMENTS, SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

ENDS = {"none": ("", ""), "bos": ("<bos>", ""), "eos": ("", "<eos>"), "bos_eos": ("<bos>", "<eos>")}
"""``ends`` → the special tokens before and after a document."""

SETTINGS = "ds4sci"
"""Key of tokenizer_config.json that holds the kind and its options, for ``residue_encoder``; others ignore it."""


def check_ends(ends: str) -> None:
    """``ValueError`` for a name that is not in ``ENDS``."""
    if ends not in ENDS:
        raise ValueError(f"ends = {ends!r}: expected one of {', '.join(ENDS)} (special tokens around a document)")


def special_token_arguments() -> dict[str, str]:
    """``pad_token``, ``unk_token`` …, as the tokenizers of transformers take them."""
    return {f"{name[1:-1]}_token": name for name in SPECIAL_TOKENS}


def nucleotide_normalizer() -> Any:
    """A normalizer of the tokenizers library that applies ``NUCLEOTIDE_REPLACEMENTS``."""
    from tokenizers import Regex, normalizers

    letters_of: dict[str, str] = {}
    for letter, base in NUCLEOTIDE_REPLACEMENTS.items():
        letters_of[base] = letters_of.get(base, "") + letter
    return normalizers.Sequence(
        [normalizers.Replace(Regex(f"[{letters}]"), base) for base, letters in letters_of.items()]
    )


def word_level(
    vocabulary: Sequence[str], pre_tokenizer: Any, *, normalizer: Any = None, decoder: Any = None
) -> Tokenizer:
    """A tokenizer that looks pieces up in ``vocabulary``, whose first entries are ``SPECIAL_TOKENS``.

    A piece that is not in the vocabulary is ``<unk>``.
    """
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder or decoders.Fuse()
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer, ends: str, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Wrap ``tokenizer`` in transformers' API.

    Adds the special tokens and puts those of ``ends`` around a document. ``settings`` are saved with the tokenizer.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    check_ends(ends)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    before, after = ENDS[ends]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(part for part in (before, "$A", after) if part),
        special_tokens=[(name, SPECIAL_TOKENS.index(name)) for name in (before, after) if name],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],  # token types are for BERT's sentence pairs
        clean_up_tokenization_spaces=False,
        **special_token_arguments(),
        **{SETTINGS: settings},
    )
