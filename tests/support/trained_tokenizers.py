"""Learned tokenizers of DNA, such as DNABERT-2's (BPE), which treat a whole sequence as one word."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LEARNED = ("bpe", "unigram", "wordpiece")
_SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


@cache
def learned_tokenizer(kind: str, longest: int = 1_000_000) -> Any:
    """A tokenizer with a small vocabulary learned on random bases, [CLS] before a document and [SEP] after it.

    longest  maximum number of letters of a WordPiece word; its default is 100
    """
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACGT"), 60)) for _ in range(80)]
    tokenizer: Any
    trainer: Any
    if kind == "bpe":
        tokenizer, trainer = (
            Tokenizer(models.BPE(unk_token="[UNK]")),
            trainers.BpeTrainer(vocab_size=160, special_tokens=_SPECIAL, show_progress=False),
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "unigram":
        tokenizer, trainer = (
            Tokenizer(models.Unigram()),
            trainers.UnigramTrainer(vocab_size=60, special_tokens=_SPECIAL, unk_token="[UNK]", show_progress=False),
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # its word-start mark stands for no base
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=longest))
        trainer = trainers.WordPieceTrainer(vocab_size=180, special_tokens=_SPECIAL, show_progress=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]",
    )  # fmt: skip


def build(name: str, longest: int = 1_000_000) -> Any:
    """Builder for ``tokenizer = {kind = "tests.support.trained_tokenizers", name = "bpe"}`` in a run file."""
    return learned_tokenizer(name, longest)
