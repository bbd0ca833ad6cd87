"""ESM-2's alphabet as transformers' own ``EsmTokenizer``: 33 tokens, ``<cls>`` before a document, ``<eos>`` behind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import EsmTokenizer


def build() -> EsmTokenizer:
    """The tokenizer of every ESM-2 model. Called on text it joins neighbours that it does not know (small letters are
    among them) into one ``<unk>``; ``residue_encoder`` reads small letters as capitals and keeps one token a residue.
    """
    from transformers import EsmTokenizer
    from transformers.models.esm.configuration_esm import get_default_vocab_list

    with tempfile.TemporaryDirectory() as folder:  # read once, at construction: it takes a file and nothing else
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(get_default_vocab_list()), encoding="utf-8")
        tokenizer = EsmTokenizer(str(file))
    # Gone by now; a tokenizer is written from what it holds in memory.
    tokenizer.init_kwargs.pop("vocab_file", None)
    return tokenizer
