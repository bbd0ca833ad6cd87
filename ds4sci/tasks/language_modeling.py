"""What masked and causal language models have in common: data, model, loss, evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ds4sci.data.language import corpus
from ds4sci.data.language.batches import DocumentReader, TrainingPhase, batches, evaluation_batches, mask_all_labels
from ds4sci.data.language.packing import Rows, make_rows
from ds4sci.data.language.targets import MaskingPolicy
from ds4sci.data.language.tokenizer_adapter import open_tokenizer
from ds4sci.data.language.windows import Coverage, Regions
from ds4sci.data.text_files import resolve_data_path
from ds4sci.losses.language import weighted_mean
from ds4sci.models import language
from ds4sci.models.huggingface.loading import Kind
from ds4sci.parallel.groups import ALONE, SequenceGroup
from ds4sci.tasks import ASSETS_DIR
from ds4sci.types import LanguageBatch, LanguageOutput

SEQUENCES = "sequences.json"
"""Of the files that a run keeps, the one with the ``alphabet`` of its training sequences."""


class LengthPhase(BaseModel):
    """Lengths of documents and rows from one point of the run on."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    from_progress: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the run's steps that lies behind when the phase begins."""
    length: int = Field(ge=4)
    """The most tokens of a document, special ones included; longer sequences are cut into windows, where tokens end."""
    row_length: int | None = Field(None, ge=4)
    """Tokens of a packed row; by default ``length``."""
    rope_factor: float = Field(1.0, ge=1.0)
    """Positions are divided by this: linear position interpolation, for lengths beyond what the model was trained
    on."""


class DataConfig(BaseModel):
    """``[data]``: sequences to learn from and to be judged on, and the rows that they are made into."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: Path
    """What to train on: a folder made by ``ds4sci data index``, or a FASTA, FASTQ or GenBank file (plain or gzipped),
    which is indexed beside itself."""
    valid: Path | None = None
    """What to be judged on, of the same kinds; without it a part of ``path`` is held out."""
    valid_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the residues of ``path`` that is held out: whole homology clusters of proteins, whole records of
    genomes, the end of a single record."""
    identity: float = Field(0.5, gt=0, le=1)
    """Proteins at least this alike are on the same side."""
    alphabet: str = Field("auto", pattern="^(auto|protein|dna)$")
    """Letters that the files may have; ``auto`` looks."""
    on_bad_record: str = Field("error", pattern="^(error|skip)$")
    """What a record that cannot be read does to the run: ends it, or is counted and left out."""
    tokenizer: dict[str, Any] = {}
    """For a new model: ``kind`` (esm, nucleotide, byte, kmer, codon) and its options. A model from ``model.path``
    brings its own."""
    phases: tuple[LengthPhase, ...] = Field(default=(LengthPhase(length=1024),), min_length=1)
    """Lengths over the run; the first phase begins at 0 and each later one after the one before."""
    packing: bool = True
    """Rows of several documents; otherwise each document is a row, padded to the longest of its batch."""
    reverse_complement: float = Field(0.0, ge=0, le=1)
    """How often a window of DNA is read on the other strand."""
    soft_masked_weight: float = Field(1.0, ge=0)
    """Weight of soft-masked (lower case) residues in the loss."""
    unknown_weight: float = Field(0.0, ge=0)
    """Weight of N, X and the other codes for several bases in the loss; ``<unk>`` tokens have none."""
    workers: int = Field(0, ge=0)
    """Threads that prepare batches ahead; 0 = in the training loop. Never changes the batches."""
    evaluation_tokens: int = Field(65536, ge=0)
    """Tokens of the held-out part that evaluations during training score, evenly spread; 0 = all."""

    @model_validator(mode="after")
    def _rises(self) -> DataConfig:
        starts = [phase.from_progress for phase in self.phases]
        if starts[0] != 0.0 or starts != sorted(set(starts)):
            raise ValueError(f"from_progress must be 0 in the first phase and rise from phase to phase; got {starts}")
        return self


class Config(BaseModel):
    """The run file's sections that a language task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: language.Config
    """Where the weights come from."""
    data: DataConfig
    """Sequences and rows."""


@dataclass
class LanguageTask:
    """See ``ds4sci.tasks.Task``.

    ``mlm_probability``: share of tokens that a masked model predicts; 0 for a causal model.
    """

    config: Config
    seed: int
    steps: int
    mlm_probability: float

    target = "score"

    def __post_init__(self) -> None:
        data = self.config.data
        self.tokenizer = open_tokenizer(self.config.model.path, data.tokenizer, causal=not self.mlm_probability)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            kind: Kind = "masked_lm" if self.mlm_probability else "causal_lm"
            self.model: nn.Module = language.build(
                self.config.model, kind, vocabulary=self.tokenizer.vocab_size, special=self.tokenizer.special_ids,
                longest=max(phase.length for phase in data.phases), packing=data.packing,
            )  # fmt: skip
        self.language.check_rope([phase.rope_factor for phase in data.phases])
        self.group: SequenceGroup = ALONE
        self._readers: tuple[DocumentReader, Regions, DocumentReader, Regions] | None = None
        self._rows_made: dict[tuple[bool, int, int | None], Rows] = {}

    def save_assets(self, folder: Path) -> None:
        """Write the model's config, the tokenizer and the alphabet of the training sequences into ``folder``, so that
        a run needs nothing else to be read."""
        self.language.save_assets(folder)
        self.tokenizer.hf_tokenizer.save_pretrained(folder)
        data = self.config.data
        store = (
            self._readers[0].store
            if self._readers is not None
            else corpus.open_store(resolve_data_path(data.path), alphabet=data.alphabet, bad=data.on_bad_record)
        )
        (folder / SEQUENCES).write_text(json.dumps({"alphabet": store.alphabet}) + "\n", encoding="utf-8")

    def pretrained(self, *, adapter: bool = False) -> tuple[nn.Module, Any]:
        """(model, tokenizer) of transformers, ready for ``save_pretrained``; see ``LanguageModel.pretrained``."""
        length = self.config.data.phases[-1].length
        model = self.language.to_pretrained(adapter=adapter, rope_factor=self.rope_factor, length=length)
        return model, self.tokenizer.hf_tokenizer

    @property
    def alphabet(self) -> str:
        """``protein`` or ``dna``: what the run was trained on, or else what its tokenizer is for; ``auto`` where
        neither says."""
        given = self.config.data.alphabet
        return given if given != "auto" else self.tokenizer.alphabet or "auto"

    @property
    def rope_factor(self) -> float:
        """Positions are divided by this in all that the trained model is asked: the last phase's."""
        return self.config.data.phases[-1].rope_factor

    def set_parallel_groups(self, group: SequenceGroup) -> None:
        """Spread every row over the ranks of ``group``."""
        self.group = self.language.group = group
        refuse_to_skip_layers(self.language)

    @property
    def language(self) -> language.LanguageModel:
        """The model, with its type."""
        assert isinstance(self.model, language.LanguageModel)
        return self.model

    def train_valid_readers(self) -> tuple[DocumentReader, Regions, DocumentReader, Regions]:
        """Training and held-out sequences, opened (and indexed) at the first call."""
        if self._readers is None:
            data = self.config.data
            found = corpus.open_train_valid(
                resolve_data_path(data.path), data.valid and resolve_data_path(data.valid),
                alphabet=data.alphabet, bad=data.on_bad_record,
                fraction=data.valid_fraction, identity=data.identity, seed=self.seed,
            )  # fmt: skip
            how = {"soft_masked_weight": data.soft_masked_weight, "unknown_weight": data.unknown_weight}
            train = DocumentReader(found.train, self.tokenizer, reverse_complement=data.reverse_complement, **how)
            valid = DocumentReader(found.valid, self.tokenizer, **how)
            self._readers = train, found.train_regions, valid, found.valid_regions
        return self._readers

    @property
    def masking_policy(self) -> MaskingPolicy:
        return MaskingPolicy(self.mlm_probability, self.tokenizer.mask_id, self.tokenizer.residue_ids)

    def _rows(self, phase: LengthPhase, *, train: bool) -> tuple[Rows, int | None]:
        """Rows of one side, made once: tokenising a genome to cut it takes its time."""
        row = (phase.row_length or phase.length) if self.config.data.packing else None
        key = train, phase.length, row
        if key not in self._rows_made:
            reader, regions = self.train_valid_readers()[:2] if train else self.train_valid_readers()[2:]
            self._rows_made[key] = make_rows(
                regions, self.tokenizer, reader.residues, document_tokens=phase.length, row_tokens=row,
                seed=self.seed, both_strands=bool(reader.reverse_complement),
                window_fn=partial(corpus.cut_windows_cached, reader.store),
            )  # fmt: skip
        return self._rows_made[key], row

    def coverage(self) -> dict[str, Coverage]:
        """What the rows of each phase, and those of the held-out part, hold of their sequences.

        Raises ValueError where there is nothing in them to predict.
        """
        phases = self.config.data.phases
        found = {f"training, length {phase.length}": self._rows(phase, train=True)[0].coverage for phase in phases}
        found["held out"] = self._rows(phases[-1], train=False)[0].coverage
        for name, one in found.items():
            if one.unknown == one.read:
                raise ValueError(
                    f"data, {name}: the tokenizer reads all {one.read:,} residues as <unk>; is it one of these "
                    "sequences, and are words as long as a document known to it (WordPiece's "
                    "max_input_chars_per_word)?"
                )
        return found

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[LanguageBatch]:
        reader, _, _, _ = self.train_valid_readers()
        phases = []
        for phase in self.config.data.phases:
            rows, budget = self._rows(phase, train=True)
            first = math.ceil(phase.from_progress * self.steps)
            phases.append(TrainingPhase(first, rows, budget, multiple(self.group), phase.rope_factor))
        return batches(
            reader, self.masking_policy, phases, seed=self.seed, start_step=start_step, rank=rank,
            world_size=world_size, micro_batch_size=micro_batch_size, accumulation_steps=accumulation_steps,
            pad_id=self.tokenizer.pad_id, workers=self.config.data.workers,
        )  # fmt: skip

    def loss(self, output: LanguageOutput, batch: LanguageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = weighted_mean(output, batch)
        return loss, {"nats": loss.detach()}

    def weight(self, batch: LanguageBatch) -> float:
        """Weights of the tokens of ``batch`` that are to be predicted, added up."""
        return float(batch.weights.double().sum())

    def work(self, batch: LanguageBatch) -> tuple[int, float]:
        """(real tokens, FLOP of a training step) of this rank's share of ``batch``."""
        return batch.tokens // self.group.size, self.language.flops(batch.doc_spans) / self.group.size

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        _, _, reader, _ = self.train_valid_readers()
        last = self.config.data.phases[-1]
        rows, budget = self._rows(last, train=False)
        wanted = self.config.data.evaluation_tokens
        size = budget or int(rows.tokens.max())
        count = min(len(rows), max(1, wanted // size)) if wanted else len(rows)
        chosen = [round(i * (len(rows) - 1) / max(1, count - 1)) for i in range(count)]
        return self.score(model, reader, rows, chosen, budget, rank=rank, world_size=world_size, device=device)

    def score(
        self, model: nn.Module, reader: DocumentReader, rows: Rows, chosen: list[int], budget: int | None, *,
        rank: int = 0, world_size: int = 1, device: torch.device, every_token: bool = False,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """A row for each batch of this rank's share of the rows: sums of nats and counts, by class."""
        share = share_of(chosen, rank, world_size)
        turns = self.masking_policy.num_passes() if every_token else 1
        made = evaluation_batches(
            reader, self.masking_policy, rows, share.rows, seed=self.seed, pad_id=self.tokenizer.pad_id, batch_size=1,
            token_budget=budget or (int(rows.tokens.max()) if world_size > 1 else None),
            pad_multiple=multiple(self.group), every_token=every_token, rope_factor=self.rope_factor,
        )  # fmt: skip
        return [
            {"id": f"row {row}"} | self._sums(output, batch.residues)
            for row, batch, output in outputs(model, made, share, device, turns)
        ]

    def _sums(self, output: LanguageOutput, residues: Tensor | None) -> dict[str, Any]:
        """nats, tokens, correct of all labels that count; ``residues`` with ``residue_nats``, those of the labels that
        stand for residues; the same of soft-masked ones, and by class; residues of labels of weight 0."""
        assert residues is not None
        counted = self.group.shard(residues)
        table = class_sums(output, self.tokenizer.vocab_size, self.group, counted)
        classes = {
            name: [float(table[:, i, 0].sum()), int(table[:, i, 1].sum()), int(table[:, i, 3].sum())]
            for i, name in enumerate(self.tokenizer.tokens)
            if table[:, i, 1].sum() > 0
        }
        own = table[:, table[..., 3].sum(0) > 0]
        nats, tokens, correct, scored = table.sum((0, 1)).tolist()
        left = self.group.total((counted * ((output.labels >= 0) & (output.weights <= 0))).sum().double())
        return {
            "nats": nats, "tokens": int(tokens), "correct": int(correct), "classes": classes,
            "residues": int(scored), "residue_nats": float(own[..., 0].sum()),
            "soft": [float(own[1, :, 0].sum()), int(own[1, :, 3].sum())], "weightless": int(left),
        }  # fmt: skip

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Per token, special ones included; ``nats_per_residue`` where masked tokens have lengths of their own."""
        tokens, residues = (sum(row[name] for row in rows) for name in ("tokens", "residues"))
        if not tokens:
            raise ValueError(
                f"no token of the held-out part counts ({len(rows)} rows, all unknown letters or weight 0), so there "
                "is nothing to score; name other sequences in data.valid, or raise data.valid_fraction"
            )
        nats = sum(row["nats"] for row in rows) / tokens
        correct = sum(row["correct"] for row in rows) / tokens
        found = {
            "score": -nats, "nats": nats, "perplexity": math.exp(min(nats, 700.0)), "accuracy": correct,
            "tokens": float(tokens),
        }  # fmt: skip
        if residues and self.counts_residues:
            found["nats_per_residue"] = sum(row["residue_nats"] for row in rows) / residues
        return found

    @property
    def counts_residues(self) -> bool:
        """Whether nats per residue mean something: not for a masked model whose tokens' lengths depend on the letters.

        There the visible tokens tell how long the masked one is and, as it was not merged with them, what it is not:
        on random bases the best model would get 1 to 2 % below ln 4 a base. Causal models have no such leak: each
        token is predicted from the text before it alone, and the product is the probability of the text.
        """
        return not self.mlm_probability or not self.tokenizer.encoder.boundaries_depend_on_residues


def asset_overrides(run: Path) -> list[str]:
    """Overrides by which a run is read from what ``LanguageTask.save_assets`` left in it, wherever its model came
    from."""
    folder = run / ASSETS_DIR
    if not (folder / "config.json").is_file():
        return []
    found = [
        f'model.path="{folder}"',
        "model.load_weights=false",
        "model.config={}",
        "model.overrides={}",
        "data.tokenizer={}",
    ]
    if (folder / SEQUENCES).is_file():  # runs of before have none
        found.append(f"data.alphabet={json.loads((folder / SEQUENCES).read_text(encoding='utf-8'))['alphabet']}")
    return found


def refuse_to_skip_layers(model: nn.Module) -> None:
    """Raises ValueError where layers are skipped by chance: ranks that share rows draw apart, and would then wait for
    each other in different layers."""
    for name, module in model.named_modules():
        rate = getattr(module, "layerdrop", 0.0)
        if isinstance(rate, float) and rate > 0:
            raise ValueError(
                f"parallel.sequence: {name or type(module).__name__} skips layers by chance (layerdrop = {rate}), and "
                "ranks that share rows would do so each for itself; set model.overrides.layerdrop=0.0, or remove "
                "parallel.sequence"
            )


def multiple(group: SequenceGroup) -> int:
    """Rows are padded to this many tokens: every rank of a group gets as many, and vectors are full."""
    return math.lcm(group.size, 8)


@dataclass(frozen=True)
class Share:
    """The rows that a rank evaluates; from number ``real`` on they are another's, computed and not counted."""

    rows: list[int]
    real: int


def share_of(chosen: list[int], rank: int, world_size: int) -> Share:
    """Every ``world_size``-th of the rows, as many on every rank: ZeRO-3 gathers parameters collectively."""
    turns = -(-len(chosen) // world_size)
    places = [turn * world_size + rank for turn in range(turns)]
    return Share([chosen[min(i, len(chosen) - 1)] for i in places], sum(i < len(chosen) for i in places))


def outputs(
    model: nn.Module, made: Iterable[LanguageBatch], share: Share, device: torch.device, turns: int = 1
) -> Iterator[tuple[int, LanguageBatch, LanguageOutput]]:
    """(row, batch, output) of the batches of a rank's share, ``turns`` for each row; what is another's is computed, and
    left."""
    for number, batch in enumerate(made):
        real = number // turns < share.real
        given = (batch if real else mask_all_labels(batch)).to(device)
        output = model(given)
        if real:
            yield share.rows[number // turns], given, output


def class_sums(output: LanguageOutput, classes: int, group: SequenceGroup, residues: Tensor | None = None) -> Tensor:
    """fp64 [2, classes, 4] on the CPU: nats, count, hits and ``residues`` of the tokens that have a label and a weight,
    over all ranks of the group; by soft-masking and label."""
    keep = ((output.labels >= 0) & (output.weights > 0)).flatten().cpu()
    labels = output.labels.clamp(min=0).flatten().cpu()
    place = (output.soft_masked.flatten().cpu().long() * classes + labels)[keep]
    ones = torch.ones_like(output.losses)
    columns = (output.losses, ones, output.correct, ones if residues is None else residues)
    values = torch.stack([x.detach().flatten().double().cpu()[keep] for x in columns], dim=1)
    table = torch.zeros(2 * classes, 4, dtype=torch.float64).index_add_(0, place, values).view(2, classes, 4)
    return group.total(table.to(output.losses.device)).cpu()
