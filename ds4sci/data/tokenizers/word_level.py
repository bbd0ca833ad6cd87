"""A tokenizer that its ``tokenizer.json`` says entirely: letters folded, text cut by a pattern, pieces looked up.

``AutoTokenizer`` loads it anywhere, without ds4sci and without remote code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ds4sci.data.tokenizers.alphabets import FOLD, SPECIALS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

ENDS = {"none": ("", ""), "bos": ("<bos>", ""), "eos": ("", "<eos>"), "bos_eos": ("<bos>", "<eos>")}
"""``ends`` → the special tokens before and behind a document."""

SETTINGS = "ds4sci"
"""Key of tokenizer_config.json under which the rule stands, for ``residue_encoder``; others ignore it."""


def check_ends(ends: str) -> None:
    """``ValueError`` for a name that is not in ``ENDS``."""
    if ends not in ENDS:
        raise ValueError(f"ends = {ends!r}: expected one of {', '.join(ENDS)} (special tokens around a document)")


def special_names() -> dict[str, str]:
    """``pad_token`` and its kin, as every tokenizer of transformers takes them."""
    return {f"{name[1:-1]}_token": name for name in SPECIALS}


def folding() -> Any:
    """A normalizer of the tokenizers library that reads nucleotides as ``FOLD`` says."""
    from tokenizers import Regex, normalizers

    into: dict[str, str] = {}
    for letter, base in FOLD.items():
        into[base] = into.get(base, "") + letter
    return normalizers.Sequence([normalizers.Replace(Regex(f"[{letters}]"), base) for base, letters in into.items()])


def word_level(
    vocabulary: Sequence[str], pre_tokenizer: Any, *, normalizer: Any = None, decoder: Any = None
) -> Tokenizer:
    """Pieces looked up in ``vocabulary``, whose first entries are ``SPECIALS``; a piece it has not is ``<unk>``."""
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder or decoders.Fuse()
    return tokenizer


def wrapped(tokenizer: Tokenizer, ends: str, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """``tokenizer`` with special tokens, those of ``ends`` around a document, and ``settings`` kept with it."""
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    check_ends(ends)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    before, behind = ENDS[ends]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(part for part in (before, "$A", behind) if part),
        special_tokens=[(name, SPECIALS.index(name)) for name in (before, behind) if name],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],  # token types belong to BERT's pairs of sentences
        clean_up_tokenization_spaces=False,
        **special_names(),
        **{SETTINGS: settings},
    )
