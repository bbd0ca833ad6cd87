"""Language modeling: data, rows, evaluation and inference that masked and causal models share."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ds4sci.data.language import corpus
from ds4sci.data.language.batches import DocumentReader, TrainingPhase, as_batch
from ds4sci.data.language.packing import Rows, make_rows
from ds4sci.data.language.targets import MaskingPolicy
from ds4sci.data.language.tokenizer_adapter import open_tokenizer
from ds4sci.data.language.windows import Coverage, Regions
from ds4sci.data.sample_schedule import SampleKeys
from ds4sci.data.sample_selection import NOT_SELECTED
from ds4sci.data.sequences import SequenceStore, index
from ds4sci.data.text_files import resolve_data_path
from ds4sci.models import language
from ds4sci.models.huggingface.loading import Kind
from ds4sci.tasks import Evaluation, SequenceEmbedding
from ds4sci.tasks.capabilities import Split
from ds4sci.tasks.evaluations.contacts import contact_evaluation
from ds4sci.tasks.evaluations.sequences import sequence_evaluation
from ds4sci.tasks.evaluations.variants import variant_evaluation
from ds4sci.tasks.language_task import SEQUENCES_FILE, LanguageTask
from ds4sci.tasks.row_evaluation import sum_by_class
from ds4sci.types import LanguageBatch, LanguageOutput


class LengthPhase(BaseModel):
    """Lengths of documents and rows from a point of the run on."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    from_progress: float = Field(0.0, ge=0.0, le=1.0)
    """Progress (step / steps) at which the phase begins."""
    length: int = Field(ge=4)
    """Most tokens of a document, special tokens included; longer sequences are cut into windows at token boundaries."""
    row_length: int | None = Field(None, ge=4)
    """Tokens of a packed row; by default ``length``."""
    rope_factor: float = Field(1.0, ge=1.0)
    """Positions are divided by this (linear position interpolation), for context lengths beyond pretraining."""


class DataConfig(SampleKeys):
    """``[data]``: training and validation sequences, and the rows into which they are packed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: Path
    """Training sequences: a folder made by ``ds4sci data index``, or a FASTA, FASTQ or GenBank file (plain or
    gzipped), which is indexed into a folder next to it."""
    valid: Path | None = None
    """Validation sequences, in the same formats; without it, a part of ``path`` is held out."""
    valid_fraction: float = Field(0.05, gt=0, lt=1)
    """Fraction of the residues of ``path`` that is held out: whole homology clusters of proteins, whole records of
    genomes, or the end of a single record."""
    valid_seed: int | None = Field(None, ge=0)
    """Seed of the choice of the held-out part; by default the run's seed. Runs that are compared need the same part."""
    identity: float = Field(0.5, gt=0, le=1)
    """Proteins with at least this sequence identity are in the same split."""
    alphabet: str = Field("auto", pattern="^(auto|protein|dna)$")
    """Alphabet of the files; ``auto`` detects it."""
    on_bad_record: str = Field("error", pattern="^(error|skip)$")
    """Treatment of unreadable records: ``error`` stops the run, ``skip`` counts and skips them."""
    tokenizer: dict[str, Any] = Field(default={})
    """For a new model: ``kind`` (esm, nucleotide, byte, kmer, codon) and its options. A model from ``model.path``
    has its own tokenizer."""
    phases: tuple[LengthPhase, ...] = Field(default=(LengthPhase(length=1024),), min_length=1)
    """Lengths over the run; the first phase begins at 0, and each later phase after the one before it."""
    packing: bool = True
    """Pack several documents into a row; otherwise each document is a row, padded to the longest of its batch."""
    reverse_complement: float = Field(0.0, ge=0, le=1)
    """Probability that a window of DNA is read on the reverse strand."""
    soft_masked_weight: float = Field(1.0, ge=0)
    """Weight of soft-masked (lower case) residues in the loss."""
    unknown_weight: float = Field(0.0, ge=0)
    """Weight of N, X and other ambiguity codes in the loss; ``<unk>`` tokens have weight 0."""
    workers: int = Field(0, ge=0)
    """Threads that prepare batches in advance; 0 = in the training loop. Does not change the batches."""
    evaluation_tokens: int = Field(65536, ge=0)
    """Number of held-out tokens that evaluations during training score, evenly spaced; 0 = all."""

    @model_validator(mode="after")
    def _phases_ascend(self) -> DataConfig:
        starts = [phase.from_progress for phase in self.phases]
        if starts[0] != 0.0 or starts != sorted(set(starts)):
            raise ValueError(
                f"from_progress must be 0 in the first phase and increase from phase to phase; got {starts}"
            )
        return self


class Config(BaseModel):
    """Sections of the run file that a language-modeling task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: language.Config
    """Architecture and source of the weights."""
    data: DataConfig
    """Sequences and rows."""


class LanguageModelingTask(LanguageTask):
    """Prediction of tokens from their context; subclasses define the context and the evaluation of variants."""

    target = "score"

    kind: Kind
    """``masked_lm`` or ``causal_lm``."""

    mlm_probability: float = 0.0
    """Fraction of the residues that a masked model predicts; 0 for a causal model."""

    evaluates_every_token: bool = False
    """Whether evaluations during training of a masked model predict every token once, in several passes."""

    def __init__(self, config: Config, *, seed: int, steps: int) -> None:
        self.config, self.seed, self.steps = config, seed, steps
        data = config.data
        self.workers = data.workers
        self.tokenizer = open_tokenizer(config.model.path, data.tokenizer, causal=self.is_causal)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = language.build(
                config.model, self.kind, vocabulary=self.tokenizer.vocab_size, special=self.tokenizer.special_ids,
                longest=max(phase.length for phase in data.phases), packing=data.packing,
            )  # fmt: skip
        super().__init__(model)
        self.language.check_rope([phase.rope_factor for phase in data.phases])
        self._readers: tuple[DocumentReader, Regions, DocumentReader, Regions] | None = None
        self._rows_cache: dict[tuple[bool, int, int | None], Rows] = {}

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts each token from the tokens before it; otherwise from both sides."""
        return self.kind == "causal_lm"

    @property
    @abstractmethod
    def reports_nats_per_residue(self) -> bool:
        """Whether nats per residue are meaningful for this model and tokenizer."""

    @property
    def masking_policy(self) -> MaskingPolicy:
        """Choice of the tokens to predict and of what the model sees in their place."""
        return MaskingPolicy(self.mlm_probability, self.tokenizer.mask_id, self.tokenizer.residue_ids)

    @property
    def alphabet(self) -> str:
        """``protein`` or ``dna``: that of the training sequences, else of the tokenizer; ``auto`` if neither is
        known."""
        configured = self.config.data.alphabet
        return configured if configured != "auto" else self.tokenizer.alphabet or "auto"

    @property
    def last_phase(self) -> LengthPhase:
        """TrainingPhase at the end of the run; evaluation and inference use its lengths and positions."""
        return self.config.data.phases[-1]

    @property
    def document_length(self) -> int:
        """Most tokens of a document in the last phase."""
        return self.last_phase.length

    @property
    def rope_factor(self) -> float:
        """Divisor of positions in evaluation and inference."""
        return self.last_phase.rope_factor

    def row_length(self, phase: LengthPhase) -> int | None:
        """Tokens of a packed row in ``phase``; None without packing."""
        return (phase.row_length or phase.length) if self.config.data.packing else None

    def save_assets(self, folder: Path) -> None:
        """Write the configuration of the model, the tokenizer and the alphabet of the training sequences."""
        super().save_assets(folder)
        data = self.config.data
        store = (
            self._readers[0].store
            if self._readers is not None
            else corpus.open_store(
                resolve_data_path(data.path), alphabet=data.alphabet, on_bad_record=data.on_bad_record
            )
        )
        (folder / SEQUENCES_FILE).write_text(json.dumps({"alphabet": store.alphabet}) + "\n", encoding="utf-8")

    def train_valid_readers(self) -> tuple[DocumentReader, Regions, DocumentReader, Regions]:
        """Return readers and regions of the training and of the held-out sequences.

        The first call opens the files, and indexes them if necessary.
        """
        if self._readers is None:
            data = self.config.data
            split = corpus.open_train_valid(
                resolve_data_path(data.path), data.valid and resolve_data_path(data.valid), alphabet=data.alphabet,
                on_bad_record=data.on_bad_record, fraction=data.valid_fraction, identity=data.identity,
                seed=self.seed if data.valid_seed is None else data.valid_seed,
            )  # fmt: skip
            weights = {"soft_masked_weight": data.soft_masked_weight, "unknown_weight": data.unknown_weight}
            train = DocumentReader(split.train, self.tokenizer, reverse_complement=data.reverse_complement, **weights)
            valid = DocumentReader(split.valid, self.tokenizer, **weights)
            self._readers = train, split.train_regions, valid, split.valid_regions
        return self._readers

    def _rows(self, phase: LengthPhase, *, train: bool) -> Rows:
        """Rows of one split, cached: cutting a genome by its tokens takes minutes."""
        row = self.row_length(phase)
        key = train, phase.length, row
        if key not in self._rows_cache:
            reader, regions = self.train_valid_readers()[:2] if train else self.train_valid_readers()[2:]
            kept = self.kept_samples() if train else None
            rows = make_rows(
                regions if kept is None else regions.take(kept), self.tokenizer, reader.residues,
                document_tokens=phase.length, row_tokens=row, seed=self.seed,
                both_strands=bool(reader.reverse_complement),
                window_fn=partial(corpus.cut_windows_cached, reader.store),
            )  # fmt: skip
            if kept is not None:
                rows = replace(rows, region=kept[rows.region])
                others = regions.residues - regions.take(kept).residues
                rows = replace(rows, coverage=rows.coverage.excluding(NOT_SELECTED, others))
            self._rows_cache[key] = rows
        return self._rows_cache[key]

    def sample_names(self) -> list[str]:
        """See ``ds4sci.tasks.SampleScoring``: RECORD:FIRST-LAST of every record, or region of one."""
        reader, regions, _, _ = self.train_valid_readers()
        places = zip(regions.record.tolist(), regions.start.tolist(), regions.stop.tolist(), strict=True)
        return [f"{reader.store.name(record)}:{start + 1}-{stop}" for record, start, stop in places]

    def sample_batches(self, split: Split = "train") -> Iterator[tuple[int, LanguageBatch]]:
        """See ``ds4sci.tasks.SampleScoring``: documents of the last phase, with masks by seed and document."""
        readers = self.train_valid_readers()
        reader, regions = readers[:2] if split == "train" else readers[2:]
        return self.region_batches(
            replace(reader, reverse_complement=0.0), self.masking_policy, regions, read_residues=reader.residues,
            document_tokens=self.document_length, window_fn=partial(corpus.cut_windows_cached, reader.store),
        )  # fmt: skip

    def train_samples(self) -> int:
        """Return the number of rows of the last phase."""
        return len(self._rows(self.last_phase, train=True))

    def coverage(self) -> dict[str, Coverage]:
        """Return the coverage of the rows of each phase and of the held-out rows.

        Raises ValueError if all residues of a part are unknown to the tokenizer.
        """
        phases = self.config.data.phases
        coverage = {f"training, length {phase.length}": self._rows(phase, train=True).coverage for phase in phases}
        coverage["held out"] = self._rows(self.last_phase, train=False).coverage
        for name, one in coverage.items():
            if one.unknown == one.tokenized_residues:
                raise ValueError(
                    f"data, {name}: the tokenizer reads all {one.unknown:,} residues as <unk>; check that it was made "
                    "for this kind of sequence, and that it accepts words as long as a document (WordPiece's "
                    "max_input_chars_per_word)"
                )
        return coverage

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[LanguageBatch]:
        reader, _, _, _ = self.train_valid_readers()
        phases = []
        for phase in self.config.data.phases:
            first = math.ceil(phase.from_progress * self.steps)
            rows = self._rows(phase, train=True)
            phases.append(TrainingPhase(first, rows, self.row_length(phase), self.row_multiple, phase.rope_factor))
        return self.train_batches(
            reader, self.masking_policy, phases, start_step=start_step, rank=rank, world_size=world_size,
            micro_batch_size=micro_batch_size, accumulation_steps=accumulation_steps,
        )  # fmt: skip

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        _, _, reader, _ = self.train_valid_readers()
        rows, budget = self._rows(self.last_phase, train=False), self.row_length(self.last_phase)
        max_tokens = self.config.data.evaluation_tokens
        size = budget or int(rows.tokens.max())
        count = min(len(rows), max(1, max_tokens // size)) if max_tokens else len(rows)
        chosen = [round(i * (len(rows) - 1) / max(1, count - 1)) for i in range(count)]
        return self.score(
            model, reader, rows, chosen, budget, rank=rank, world_size=world_size, device=device,
            every_token=self.evaluates_every_token,
        )  # fmt: skip

    def score(
        self, model: nn.Module, reader: DocumentReader, rows: Rows, chosen: list[int], budget: int | None, *,
        rank: int = 0, world_size: int = 1, device: torch.device, every_token: bool = False,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return, per batch of this rank's shard of the rows ``chosen``, sums of nats and counts, in all and by class.

        The arguments are those of ``LanguageTask.forward_rows``.
        """
        scored = self.forward_rows(
            model, reader, self.masking_policy, rows, chosen, budget, rank=rank, world_size=world_size, device=device,
            every_token=every_token,
        )  # fmt: skip
        return [{"id": f"row {row}"} | self._sums(output, batch.residues) for row, batch, output in scored]

    def _sums(self, output: LanguageOutput, residues: Tensor | None) -> dict[str, Any]:
        """Sums over the labels of a batch.

        nats, tokens, correct   of all labels with a weight
        residues, residue_nats  of the labels that stand for residues
        soft                    the same two, of soft-masked residues: [nats, residues]
        classes                 token → [nats, count, residues]
        weightless              residues of labels of weight 0
        """
        assert residues is not None
        counted = self.group.shard(residues)
        table = sum_by_class(output, self.tokenizer.vocab_size, self.group, counted)
        classes = {
            name: [float(table[:, i, 0].sum()), int(table[:, i, 1].sum()), int(table[:, i, 3].sum())]
            for i, name in enumerate(self.tokenizer.tokens)
            if table[:, i, 1].sum() > 0
        }
        own = table[:, table[..., 3].sum(0) > 0]
        nats, tokens, correct, scored = table.sum((0, 1)).tolist()
        weightless = self.group.all_reduce_sum(
            (counted * ((output.labels >= 0) & (output.weights <= 0))).sum().double()
        )
        return {
            "nats": nats, "tokens": int(tokens), "correct": int(correct), "classes": classes,
            "residues": int(scored), "residue_nats": float(own[..., 0].sum()),
            "soft": [float(own[1, :, 0].sum()), int(own[1, :, 3].sum())], "weightless": int(weightless),
        }  # fmt: skip

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return means per token, special tokens included; ``nats_per_residue`` where it is meaningful."""
        tokens, residues = (sum(row[name] for row in rows) for name in ("tokens", "residues"))
        if not tokens:
            raise ValueError(
                f"nothing to score: no token of the held-out part counts ({len(rows)} rows, all of unknown letters or "
                "weight 0); set data.valid to other sequences, or increase data.valid_fraction"
            )
        nats = sum(row["nats"] for row in rows) / tokens
        accuracy = sum(row["correct"] for row in rows) / tokens
        metrics = {
            "score": -nats, "nats": nats, "perplexity": math.exp(min(nats, 700.0)), "accuracy": accuracy,
            "tokens": float(tokens),
        }  # fmt: skip
        if residues and self.reports_nats_per_residue:
            metrics["nats_per_residue"] = sum(row["residue_nats"] for row in rows) / residues
        return metrics

    def evaluations(self) -> dict[str, Evaluation]:
        return super().evaluations() | {
            "sequences": sequence_evaluation(self),
            "variants": variant_evaluation(self),
            "contacts": contact_evaluation(self),
        }

    @property
    def skips_unreadable(self) -> bool:
        """Whether ``data.on_bad_record`` skips records that cannot be read; otherwise they are an error."""
        return self.config.data.on_bad_record == "skip"

    def open_sequences(self, path: Path, folder: Path) -> SequenceStore:
        """Open the sequences in ``path``, in the alphabet of the run; a file is indexed in ``folder``.

        Raises ValueError for a store of another alphabet, and for letters that are not in the alphabet of the run.
        """
        if path.is_dir():
            store = SequenceStore.open(path)
            if self.alphabet not in ("auto", store.alphabet):
                raise ValueError(
                    f"--fasta {path} has {store.alphabet} sequences, and the run was trained on {self.alphabet}"
                )
            return store
        if not path.is_file():
            raise ValueError(f"--fasta {path}: no such file")
        index([path], folder / "store", alphabet=self.alphabet, on_bad_record=self.config.data.on_bad_record, jobs=1)  # type: ignore[arg-type]
        return SequenceStore.open(folder / "store")

    @torch.no_grad()
    def embed(self, residues: np.ndarray, name: str) -> SequenceEmbedding:
        """Embed ``residues`` as one document, split over the ranks of the parallel group. See ``SequenceEmbedder``."""
        ids, start, size = self.tokenizer.encode(residues)
        real = np.flatnonzero(size)
        unknown = self.tokenizer.is_unknown(ids[real])
        if unknown.all():
            return SequenceEmbedding(torch.zeros(0), start[real], size[real], unknown)
        n = -(-len(ids) // self.row_multiple) * self.row_multiple
        batch = as_batch([ids], n, self.tokenizer.pad_id, name, rope_factor=self.rope_factor)
        hidden = self.language.hidden(batch.to(next(self.model.parameters()).device)).float()
        if self.group.size > 1:
            parts = [torch.empty_like(hidden) for _ in range(self.group.size)]
            dist.all_gather(parts, hidden.contiguous(), group=self.group.handle)
            hidden = torch.cat(parts, dim=1)
        return SequenceEmbedding(hidden[0, : len(ids)].cpu()[real].contiguous(), start[real], size[real], unknown)
