"""One token a byte of UTF-8 text: id 5 + byte, after the five special tokens. Case and every sign are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ds4sci.data.tokenizers.alphabets import SPECIALS
from ds4sci.data.tokenizers.schemes import Letters
from ds4sci.data.tokenizers.word_level import word_level, wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def build(ends: str = "none") -> PreTrainedTokenizerFast:
    """``ends``: none, bos, eos or bos_eos."""
    from tokenizers import Regex, decoders, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # A vocabulary is text, so bytes go by GPT-2's stand-ins: printable ASCII is itself.
    standin = bytes_to_unicode()
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex("."), "isolated"),
        ]
    )
    vocabulary = [*SPECIALS, *(standin[byte] for byte in range(256))]
    return wrapped(word_level(vocabulary, cut, decoder=decoders.ByteLevel()), ends, {"kind": "byte"})


def scheme(settings: dict[str, Any]) -> Letters:
    """The rule of ``residue_encoder``."""
    return Letters(np.arange(256, dtype=np.int32) + len(SPECIALS))
