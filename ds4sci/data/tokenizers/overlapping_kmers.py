"""Overlapping k-mer tokenizer in Python, because ``tokenizer.json`` cannot describe overlapping tokens.

The tokenizers library splits text into pieces that do not overlap (its patterns consume what they match), and its
models see one piece at a time, so a letter cannot be in two tokens. DNABERT instead writes all k-mers out with spaces,
six times the text. This file requires only transformers: ``save_pretrained`` copies it next to the vocabulary, and
``AutoTokenizer.from_pretrained(folder, trust_remote_code=True)`` loads it where ds4sci is not installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer


class OverlappingKmerTokenizer(PreTrainedTokenizer):
    """Tokens are windows of k letters, one every ``stride`` letters, looked up in ``vocab.json``.

    ``fold`` maps letters to the letters that are looked up. ``before`` and ``behind`` are the special tokens around a
    document, or empty; saved tokenizers have these argument names. Letters after the last whole window are in no token.
    Decoding writes only the letters of a window that the window before it does not have.
    """

    vocab_files_names = {"vocab_file": "vocab.json"}  # noqa: RUF012 (as transformers declares it)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab_file: str,
        k: int,
        stride: int,
        fold: dict[str, str],
        before: str = "",
        behind: str = "",
        **kwargs: Any,
    ) -> None:
        self._ids: dict[str, int] = json.loads(Path(vocab_file).read_text(encoding="utf-8"))
        self._names = {i: token for token, i in self._ids.items()}
        self.k, self.stride, self.fold, self.before, self.behind = k, stride, fold, before, behind
        super().__init__(k=k, stride=stride, fold=fold, before=before, behind=behind, **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = text.translate({ord(letter): base for letter, base in self.fold.items()})
        return [text[i : i + self.k] for i in range(0, len(text) - self.k + 1, self.stride)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._ids[str(self.unk_token)])

    def _convert_id_to_token(self, index: int) -> str:
        return self._names.get(index, str(self.unk_token))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        special = set(self.all_special_tokens)
        text, previous = [], ""
        for token in tokens:
            fresh = token in special or not previous or previous in special
            text.append(token if fresh else token[-self.stride :])
            previous = token
        return "".join(text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        before = [self._ids[self.before]] if self.before else []
        behind = [self._ids[self.behind]] if self.behind else []
        second = [] if token_ids_1 is None else [*before, *token_ids_1, *behind]
        return [*before, *token_ids_0, *behind, *second]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(i in special) for i in token_ids_0]
        parts = [part for part in (token_ids_0, token_ids_1) if part is not None]
        ends = [1] * bool(self.before), [1] * bool(self.behind)
        return [bit for part in parts for bit in (*ends[0], *[0] * len(part), *ends[1])]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = f"{filename_prefix}-vocab.json" if filename_prefix else "vocab.json"
        file = Path(save_directory) / name
        file.write_text(json.dumps(self._ids), encoding="utf-8")
        return (str(file),)
