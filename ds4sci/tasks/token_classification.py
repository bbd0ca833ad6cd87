"""Task: classify every residue by its DSSP secondary structure, with a language model.

The model is a transformers model for token classification, from a folder or the hub, with a new head if it has none.
All weights are trained, or only adapters and the head (``model.lora``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ds4sci.chemistry.residue_codes import secondary_classes
from ds4sci.data.language.batches import Document, TrainingPhase
from ds4sci.data.language.packing import Rows, make_rows
from ds4sci.data.language.targets import MaskingPolicy
from ds4sci.data.language.tokenizer_adapter import TokenizerAdapter, open_tokenizer
from ds4sci.data.language.windows import Coverage, Regions
from ds4sci.data.sample_schedule import SampleKeys
from ds4sci.data.sample_selection import NOT_SELECTED, SelectionConfig, kept_samples
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path
from ds4sci.models import language
from ds4sci.tasks.capabilities import Split
from ds4sci.tasks.language_task import LanguageTask, asset_overrides, parallel_units
from ds4sci.tasks.miniatures import token_classification_miniature
from ds4sci.tasks.row_evaluation import sum_by_class
from ds4sci.types import IGNORE_INDEX, LanguageBatch

__all__ = ["Config", "DataConfig", "TokenClassificationTask", "asset_overrides", "build", "miniature", "parallel_units"]

STATES = {"3": ("helix", "strand", "loop"), "8": tuple("HGIEBTSC")}
"""Names of the classes; the eight are DSSP's, with C for loop."""


class DataConfig(SampleKeys):
    """``[data]``: chains with known secondary structure."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    train: Path
    """Chain set (``.npz``) with DSSP for training."""
    valid: Path
    """Chain set for validation; it should have no homologues of the training chains."""
    states: Literal["3", "8"] = "3"
    """Three classes (helix, strand, loop), or DSSP's eight."""
    tokenizer: dict[str, Any] = Field(default={})
    """For a new model: ``kind`` and its options. A model from ``model.path`` has its own tokenizer."""
    length: int = Field(1024, ge=4)
    """Most tokens of a document; longer chains are cut into windows."""
    row_length: int | None = Field(None, ge=4)
    """Tokens of a packed row; by default ``length``."""
    packing: bool = True
    """Pack several documents into a row; otherwise each document is a row, padded to the longest of its batch."""
    workers: int = Field(0, ge=0)
    """Threads that prepare batches in advance; 0 = in the training loop. Does not change the batches."""


class Config(BaseModel):
    """Sections of the run file that this task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: language.Config
    """Architecture and source of the weights."""
    data: DataConfig
    """Chains and labels."""


@dataclass(frozen=True)
class LabelReader:
    """Chains and their DSSP states as documents."""

    chains: ChainSet
    tokenizer: TokenizerAdapter
    states: str

    def document(self, record: int, start: int, stop: int, rng: np.random.Generator | None = None) -> Document:
        """Return residues start … stop − 1 of a chain; see ``ds4sci.data.language.batches.DocumentSource``."""
        chain = self.chains[record]
        letters = np.frombuffer(chain.sequence.encode("ascii"), np.uint8)[start:stop]
        dssp = chain.dssp or "?" * len(chain.sequence)
        classes = secondary_classes(dssp) if self.states == "3" else _dssp_classes(dssp)
        ids, first, size = self.tokenizer.encode(letters)
        token_classes = classes[start:stop][np.minimum(first, len(letters) - 1)]
        labels = np.where((size == 1) & (token_classes >= 0), token_classes, IGNORE_INDEX)
        return Document(
            ids, np.ones(len(ids), np.float32), np.zeros(len(ids), bool), first, size, self.tokenizer.is_unknown(ids),
            f"{chain.id}:{start + 1}-{stop}", labels,
        )  # fmt: skip


def _dssp_classes(dssp: str) -> np.ndarray:
    """Index of each DSSP state in the eight classes; −1 where unknown."""
    table = np.full(256, -1, np.int64)
    for number, letter in enumerate(STATES["8"]):
        table[ord(letter)] = number
    table[[ord(" "), ord("-")]] = STATES["8"].index("C")
    return table[np.frombuffer(dssp.encode("ascii", "replace"), np.uint8)]


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.miniatures``."""
    return token_classification_miniature(config, folder)


def build(config: Config, *, seed: int, steps: int) -> TokenClassificationTask:
    """Return the task with its model, loaded or initialised from ``seed``."""
    return TokenClassificationTask(config, seed=seed, steps=steps)


class TokenClassificationTask(LanguageTask):
    """Classification of residues. See ``ds4sci.tasks.Task`` for the methods."""

    target = "accuracy"

    def __init__(self, config: Config, *, seed: int, steps: int) -> None:
        self.config, self.seed, self.steps = config, seed, steps
        self.workers = config.data.workers
        self.names = STATES[config.data.states]
        self.tokenizer = open_tokenizer(config.model.path, config.data.tokenizer, causal=True)
        if not self.tokenizer.encoder.one_per_residue:
            raise ValueError(
                "token_classification needs a tokenizer with one token per residue, because a token of several "
                f"residues has no class; this tokenizer is {type(self.tokenizer.hf_tokenizer).__name__}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = language.build(
                config.model, "token_labels", vocabulary=self.tokenizer.vocab_size, special=self.tokenizer.special_ids,
                labels=self.names, longest=config.data.length, packing=config.data.packing,
            )  # fmt: skip
        super().__init__(model)

    @property
    def document_length(self) -> int:
        """Most tokens of a document."""
        return self.config.data.length

    def _open(self, path: Path, selection: SelectionConfig | None = None) -> tuple[LabelReader, Rows, int | None]:
        """DocumentReader, rows and row length of a chain set, or of a part of it."""
        data = self.config.data
        chains = ChainSet.open(resolve_data_path(path)).require_single_chains()
        row = (data.row_length or data.length) if data.packing else None
        kept = np.arange(len(chains)) if selection is None else kept_samples(selection, chains.ids)
        regions = Regions.whole(chains.lengths, kept)
        rows = make_rows(regions, self.tokenizer, document_tokens=data.length, row_tokens=row, seed=self.seed)
        if selection is not None:
            rows = replace(rows, region=kept[rows.region])
            others = int(chains.lengths.sum()) - regions.residues
            rows = replace(rows, coverage=rows.coverage.excluding(NOT_SELECTED, others))
        return LabelReader(chains, self.tokenizer, data.states), rows, row

    def _open_train(self) -> tuple[LabelReader, Rows, int | None]:
        return self._open(self.config.data.train, self.config.data.selection)

    def sample_names(self) -> list[str]:
        """See ``ds4sci.tasks.SampleScoring``."""
        return ChainSet.open(resolve_data_path(self.config.data.train)).ids

    def sample_batches(self, split: Split = "train") -> Iterator[tuple[int, LanguageBatch]]:
        """See ``ds4sci.tasks.SampleScoring``."""
        data = self.config.data
        chains = ChainSet.open(resolve_data_path(getattr(data, split)))
        regions = Regions.whole(chains.lengths, range(len(chains)))
        reader = LabelReader(chains, self.tokenizer, data.states)
        return self.region_batches(reader, MaskingPolicy(), regions, document_tokens=data.length)

    def train_samples(self) -> int:
        """Return the number of rows of the training chains."""
        return len(self._open_train()[1])

    def coverage(self) -> dict[str, Coverage]:
        """Return the coverage of the rows of both chain sets."""
        held_out = self._open(self.config.data.valid)[1]
        return {"training": self._open_train()[1].coverage, "held out": held_out.coverage}

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[LanguageBatch]:
        reader, rows, row = self._open_train()
        return self.train_batches(
            reader, MaskingPolicy(), [TrainingPhase(0, rows, row, self.row_multiple)], start_step=start_step, rank=rank,
            world_size=world_size, micro_batch_size=micro_batch_size, accumulation_steps=accumulation_steps,
        )  # fmt: skip

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        reader, rows, row = self._open(self.config.data.valid)
        scored = self.forward_rows(
            model,
            reader,
            MaskingPolicy(),
            rows,
            list(range(len(rows))),
            row,
            rank=rank,
            world_size=world_size,
            device=device,
        )
        results = []
        for number, _, output in scored:
            table = sum_by_class(output, len(self.names), self.group)
            results.append(
                {
                    "id": f"row {number}",
                    "nats": float(table[..., 0].sum()),
                    "correct": int(table[..., 2].sum()),
                    "tokens": int(table[..., 1].sum()),
                    "classes": {
                        name: [int(table[:, i, 2].sum()), int(table[:, i, 1].sum())]
                        for i, name in enumerate(self.names)
                    },
                }
            )
        return results

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        tokens = sum(row["tokens"] for row in rows)
        if not tokens:
            raise ValueError(
                f"data.valid = {str(self.config.data.valid)!r}: no residue of its {len(rows)} rows has a class, so "
                "there is nothing to score; name a chain set with secondary structure (DSSP)"
            )
        metrics = {
            "accuracy": sum(row["correct"] for row in rows) / tokens,
            "nats": sum(row["nats"] for row in rows) / tokens,
        }
        for name in self.names:
            correct, count = (sum(row["classes"][name][i] for row in rows) for i in range(2))
            if count:
                metrics[f"recall_{name}"] = correct / count
        return metrics
