"""Name a class for every residue: secondary structure by DSSP's states, with a language model underneath.

The model is one of transformers' for token classification: of a folder or the hub, with a new head where it has none,
all of it trained, or adapters and the head (``model.lora``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ds4sci.chemistry.residue_codes import secondary_classes
from ds4sci.data.language.batches import Document, TrainingPhase, batches, evaluation_batches
from ds4sci.data.language.packing import Rows, make_rows
from ds4sci.data.language.targets import MaskingPolicy
from ds4sci.data.language.tokenizer_adapter import TokenizerAdapter, open_tokenizer
from ds4sci.data.language.windows import Coverage, Regions
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path
from ds4sci.losses.language import weighted_mean
from ds4sci.models import language
from ds4sci.parallel.groups import ALONE, SequenceGroup
from ds4sci.tasks import language_modeling
from ds4sci.types import IGNORE_INDEX, LanguageBatch, LanguageOutput

asset_overrides = language_modeling.asset_overrides

STATES = {"3": ("helix", "strand", "loop"), "8": tuple("HGIEBTSC")}
"""Names of the classes; eight are DSSP's own, with C for loop."""


class DataConfig(BaseModel):
    """``[data]``: chains with known secondary structure."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    train: Path
    """Chain set (``.npz``) with DSSP to train on."""
    valid: Path
    """Chain set to be judged on; no homologues of the training chains."""
    states: Literal["3", "8"] = "3"
    """Helix, strand, loop; or DSSP's eight."""
    tokenizer: dict[str, Any] = {}
    """For a new model: ``kind`` and its options. A model from ``model.path`` brings its own."""
    length: int = Field(1024, ge=4)
    """The most tokens of a document; longer chains are cut into windows."""
    row_length: int | None = Field(None, ge=4)
    """Tokens of a packed row; by default ``length``."""
    packing: bool = True
    """Rows of several documents; otherwise each document is a row, padded to the longest of its batch."""
    workers: int = Field(0, ge=0)
    """Threads that prepare batches ahead."""


class Config(BaseModel):
    """The run file's sections that this task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: language.Config
    """Where the weights come from."""
    data: DataConfig
    """Chains and labels."""


@dataclass(frozen=True)
class LabelReader:
    """Chains and their DSSP states as documents."""

    chains: ChainSet
    tokenizer: TokenizerAdapter
    states: str

    def document(self, record: int, start: int, stop: int, rng: np.random.Generator | None = None) -> Document:
        """See ``ds4sci.data.language.batches.DocumentReader``."""
        chain = self.chains[record]
        letters = np.frombuffer(chain.sequence.encode("ascii"), np.uint8)[start:stop]
        dssp = chain.dssp or "?" * len(chain.sequence)
        classes = secondary_classes(dssp) if self.states == "3" else _eight(dssp)
        ids, place, size = self.tokenizer.encode(letters)
        own = classes[start:stop][np.minimum(place, len(letters) - 1)]
        labels = np.where((size == 1) & (own >= 0), own, IGNORE_INDEX)
        return Document(
            ids, np.ones(len(ids), np.float32), np.zeros(len(ids), bool), place, size, self.tokenizer.is_unknown(ids),
            f"{chain.id}:{start + 1}-{stop}", labels,
        )  # fmt: skip


def _eight(dssp: str) -> np.ndarray:
    table = np.full(256, -1, np.int64)
    for number, letter in enumerate(STATES["8"]):
        table[ord(letter)] = number
    table[[ord(" "), ord("-")]] = STATES["8"].index("C")
    return table[np.frombuffer(dssp.encode("ascii", "replace"), np.uint8)]


def build(config: Config, *, seed: int, steps: int) -> ResidueLabelsTask:
    """The task with its model, loaded or freshly initialised from ``seed``."""
    return ResidueLabelsTask(config, seed)


class ResidueLabelsTask:
    """See ``ds4sci.tasks.Task``."""

    target = "accuracy"

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.seed = config, seed
        self.names = STATES[config.data.states]
        self.tokenizer = open_tokenizer(config.model.path, config.data.tokenizer, causal=True)
        if not self.tokenizer.encoder.one_per_residue:
            raise ValueError(
                "token_classification needs a tokenizer with one token per residue: a token of several residues has no "
                f"class; this tokenizer is {type(self.tokenizer.hf_tokenizer).__name__}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.language = language.build(
                config.model, "token_labels", vocabulary=self.tokenizer.vocab_size, special=self.tokenizer.special_ids,
                labels=self.names, longest=config.data.length, packing=config.data.packing,
            )  # fmt: skip
        self.model: nn.Module = self.language
        self.group: SequenceGroup = ALONE

    def set_parallel_groups(self, group: SequenceGroup) -> None:
        """Spread every row over the ranks of ``group``."""
        self.group = self.language.group = group
        language_modeling.refuse_to_skip_layers(self.language)

    def save_assets(self, folder: Path) -> None:
        """Write the model's config and the tokenizer into ``folder``."""
        self.language.save_assets(folder)
        self.tokenizer.hf_tokenizer.save_pretrained(folder)

    def pretrained(self, *, adapter: bool = False) -> tuple[nn.Module, Any]:
        """(model, tokenizer) of transformers, ready for ``save_pretrained``."""
        model = self.language.to_pretrained(adapter=adapter, rope_factor=1.0, length=self.config.data.length)
        return model, self.tokenizer.hf_tokenizer

    def _open(self, path: Path) -> tuple[LabelReader, Rows, int | None]:
        data = self.config.data
        chains = ChainSet.open(resolve_data_path(path))
        row = (data.row_length or data.length) if data.packing else None
        regions = Regions.whole(chains.lengths, range(len(chains)))
        rows = make_rows(regions, self.tokenizer, document_tokens=data.length, row_tokens=row, seed=self.seed)
        return LabelReader(chains, self.tokenizer, data.states), rows, row

    def coverage(self) -> dict[str, Coverage]:
        """What the rows of both chain sets hold of their residues."""
        data = self.config.data
        return {
            name: self._open(path)[1].coverage for name, path in (("training", data.train), ("held out", data.valid))
        }

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[LanguageBatch]:
        reader, rows, row = self._open(self.config.data.train)
        return batches(
            reader, MaskingPolicy(), [TrainingPhase(0, rows, row, language_modeling.multiple(self.group))],
            seed=self.seed, start_step=start_step, rank=rank, world_size=world_size,
            micro_batch_size=micro_batch_size, accumulation_steps=accumulation_steps,
            pad_id=self.tokenizer.pad_id, workers=self.config.data.workers,
        )  # fmt: skip

    def loss(self, output: LanguageOutput, batch: LanguageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = weighted_mean(output, batch)
        return loss, {"nats": loss.detach()}

    def weight(self, batch: LanguageBatch) -> float:
        """Weights of the tokens of ``batch`` that are to be named, added up."""
        return float(batch.weights.double().sum())

    def work(self, batch: LanguageBatch) -> tuple[int, float]:
        """(real tokens, FLOP of a training step) of this rank's share of ``batch``."""
        return batch.tokens // self.group.size, self.language.flops(batch.doc_spans) / self.group.size

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        reader, rows, row = self._open(self.config.data.valid)
        chosen = list(range(len(rows)))
        share = language_modeling.share_of(chosen, rank, world_size)
        made = evaluation_batches(
            reader, MaskingPolicy(), rows, share.rows, seed=self.seed, pad_id=self.tokenizer.pad_id, batch_size=1,
            token_budget=row or (int(rows.tokens.max()) if world_size > 1 else None),
            pad_multiple=language_modeling.multiple(self.group),
        )  # fmt: skip
        found = []
        for number, _, output in language_modeling.outputs(model, made, share, device):
            table = language_modeling.class_sums(output, len(self.names), self.group)
            found.append(
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
        return found

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        tokens = sum(row["tokens"] for row in rows)
        if not tokens:
            raise ValueError(
                f"data.valid = {str(self.config.data.valid)!r}: no residue of its {len(rows)} rows has a class, so "
                "there is nothing to score; name a chain set with secondary structure (DSSP)"
            )
        found = {
            "accuracy": sum(row["correct"] for row in rows) / tokens,
            "nats": sum(row["nats"] for row in rows) / tokens,
        }
        for name in self.names:
            correct, all_of_it = (sum(row["classes"][name][i] for row in rows) for i in range(2))
            if all_of_it:
                found[f"recall_{name}"] = correct / all_of_it
        return found
