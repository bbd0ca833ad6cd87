"""Tokenizers of DNA that are learnt, as DNABERT-2's (BPE) and others of the field are: a word is a whole sequence."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LEARNT = ("bpe", "unigram", "wordpiece")
_SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


@cache
def learnt(kind: str, longest: int = 1_000_000) -> Any:
    """A small vocabulary learnt on random bases, [CLS] before a document and [SEP] behind it.

    longest  letters of a word that WordPiece knows; its own default is 100
    """
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACGT"), 60)) for _ in range(80)]
    own: Any
    trainer: Any
    if kind == "bpe":
        own, trainer = (
            Tokenizer(models.BPE(unk_token="[UNK]")),
            trainers.BpeTrainer(vocab_size=160, special_tokens=_SPECIAL, show_progress=False),
        )
        own.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "unigram":
        own, trainer = (
            Tokenizer(models.Unigram()),
            trainers.UnigramTrainer(vocab_size=60, special_tokens=_SPECIAL, unk_token="[UNK]", show_progress=False),
        )
        own.pre_tokenizer = pre_tokenizers.Metaspace()  # its mark of a word's beginning stands for no base
    else:
        own = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=longest))
        trainer = trainers.WordPieceTrainer(vocab_size=180, special_tokens=_SPECIAL, show_progress=False)
        own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.train_from_iterator(texts, trainer)
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]",
    )  # fmt: skip


def build(name: str, longest: int = 1_000_000) -> Any:
    """``tokenizer = {kind = "tests.support.trained_tokenizers", name = "bpe"}`` of a run file."""
    return learnt(name, longest)
