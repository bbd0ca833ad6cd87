"""Base class of the tasks on transformers language models: packed rows, sequence parallelism, assets and export."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ds4sci.config.task_module import ParallelUnit
from ds4sci.data.language.batches import DocumentSource, TrainingPhase, batches, evaluation_batches
from ds4sci.data.language.packing import Rows, make_rows
from ds4sci.data.language.row_order import PrunedRows, ShuffledRows
from ds4sci.data.language.targets import MaskingPolicy
from ds4sci.data.language.tokenizer_adapter import TokenizerAdapter
from ds4sci.data.language.windows import Regions
from ds4sci.data.sample_schedule import SampleKeys
from ds4sci.data.sample_selection import kept_samples, require_a_step, sample_weights
from ds4sci.losses.language import weighted_mean
from ds4sci.models import language
from ds4sci.models.huggingface import pipeline_stage
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.parallel.pipeline import PipelineStage, StageParts
from ds4sci.tasks import ASSETS_DIR
from ds4sci.tasks.row_evaluation import forward_rows, shard_rows, sums_of_documents
from ds4sci.tasks.sampled_task import SampledTask
from ds4sci.types import LanguageBatch, LanguageOutput

SEQUENCES_FILE = "sequences.json"
"""The asset that holds the ``alphabet`` of the training sequences."""

PEFT_TASK_TYPES = {"causal_lm": "CAUSAL_LM", "token_labels": "TOKEN_CLS", "masked_lm": None}
"""Kind of a model → peft's task type. peft has none for masked models; it saves their class itself
(``auto_mapping``)."""


class LanguageTask(SampledTask):
    """A task whose model is a ``LanguageModel`` and whose batches are packed rows of documents.

    tokenizer  tokenizer of the run
    language   the model, with its type
    """

    tokenizer: TokenizerAdapter
    seed: int
    steps: int = 0
    workers: int = 0

    def __init__(self, model: language.LanguageModel) -> None:
        self.language = model
        self.model: nn.Module = model
        self.group: SequenceGroup = SINGLE_RANK

    @property
    def samples(self) -> SampleKeys:
        """What the run file says about training samples; subclasses have a ``config`` whose ``data`` says it."""
        data = getattr(getattr(self, "config", None), "data", None)
        return data if isinstance(data, SampleKeys) else SampleKeys()

    @property
    def document_length(self) -> int:
        """Most tokens of a document in inference."""
        raise NotImplementedError

    @property
    def rope_factor(self) -> float:
        """Divisor of positions in inference."""
        return 1.0

    def set_parallel_groups(self, group: SequenceGroup) -> None:
        """Split every row over the ranks of ``group``. Raises ValueError for a model with layer dropping."""
        self.group = self.language.group = group
        reject_layer_dropping(self.language)

    def pipeline_parts(self, stages: int) -> Sequence[StageParts]:
        """Return what each of ``stages`` pipeline stages holds."""
        return pipeline_stage.partition(self.language, stages)

    def pipeline_stage(self, stage: int, stages: int) -> PipelineStage:
        """Return a pipeline stage of the model; other parameters are removed from ``model``."""
        return pipeline_stage.LanguageStage(self.language, stage, stages)

    @property
    def row_multiple(self) -> int:
        """Rows are padded to a multiple of this many tokens, so that every rank gets equally many in full vectors."""
        return math.lcm(self.group.size, 8)

    def kept_samples(self) -> np.ndarray | None:
        """Return the numbers of the selected training samples, or None for all."""
        return None if self.samples.selection is None else kept_samples(self.samples.selection, self.sample_names())

    def _order(self, phases: Sequence[TrainingPhase], **position: int) -> Sequence[TrainingPhase]:
        """Prepare what ``samples`` asks for besides the selection; return ``phases`` with the order of their rows.

        Raises ValueError for pruning with several phases, workers or too few epochs.
        """
        keys = self.samples
        self.language.measures_errors = self.language.measures_errors or keys.record_scores
        record, factors = self.start_record(), None
        if keys.weights is not None:
            factors = sample_weights(keys.weights, self.sample_names(), self.kept_samples())
        if keys.pruning is None:
            if factors is None:
                return phases
            return [replace(one, order=ShuffledRows(one.rows, self.seed, factors)) for one in phases]
        if len(phases) > 1 or self.workers:
            what = f"data.workers = {self.workers}" if self.workers else f"{len(phases)} phases of data.phases"
            raise ValueError(
                f"data.pruning: {what}: the rows of an epoch depend on the losses of the one before, so that they "
                "cannot be prepared in advance, nor change their length; use data.workers = 0 and one phase"
            )
        assert record is not None
        span = position["micro_batch_size"] * position["world_size"]
        order = PrunedRows(
            phases[0].rows, phases[0].token_budget, self.seed, keys.pruning, record, span=span, factors=factors,
            positions=self.steps * span * position["accumulation_steps"],
        )  # fmt: skip
        self.start_pruning(order.epochs)
        return [replace(phases[0], order=order)]

    def train_batches(
        self, reader: DocumentSource, policy: MaskingPolicy, phases: Sequence[TrainingPhase], *, start_step: int,
        rank: int, **position: int,
    ) -> Iterator[LanguageBatch]:  # fmt: skip
        """Yield the micro-batches of ``Task.batches``; ``position`` holds its other arguments.

        Raises ValueError if a selection leaves fewer rows than a step needs.
        """
        step_size = position["micro_batch_size"] * position["world_size"] * position["accumulation_steps"]
        for phase in phases:
            require_a_step(self.samples.selection, len(phase.rows), step_size)
        return batches(
            reader, policy, self._order(phases, **position), seed=self.seed, pad_id=self.tokenizer.pad_id,
            workers=self.workers, start_step=start_step, rank=rank, **position,
        )  # fmt: skip

    def loss(self, output: LanguageOutput, batch: LanguageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = weighted_mean(output, batch)
        if self._record is not None and batch.samples:
            sums = sums_of_documents(output, batch, self.group)
            if self.group.rank == 0:
                self._record.add(batch.step, np.array(batch.samples, np.int64), sums.numpy())
        return loss, {"nats": loss.detach()}

    def weight(self, batch: LanguageBatch) -> float:
        """Return the sum of the weights of the tokens to predict, or ``batch.total_weight``."""
        return float(batch.weights.double().sum()) if batch.total_weight is None else batch.total_weight

    def work(self, batch: LanguageBatch) -> tuple[float, float]:
        """Return (real tokens, FLOP of a training step) of this rank's part of ``batch``."""
        return batch.tokens / self.group.size, self.language.flops(batch.doc_spans) / self.group.size

    def forward_rows(
        self, model: nn.Module, reader: DocumentSource, policy: MaskingPolicy, rows: Rows, chosen: list[int],
        budget: int | None, *, rank: int, world_size: int, device: torch.device, every_token: bool = False,
    ) -> Iterator[tuple[int, LanguageBatch, LanguageOutput]]:  # fmt: skip
        """Yield (row, batch, output) for this rank's shard of the rows ``chosen``.

        budget       tokens of a row, or None for rows padded to their own length
        every_token  predict every token once, in as many passes as ``policy`` needs
        """
        shard = shard_rows(chosen, rank, world_size)
        batches_of_rows = evaluation_batches(
            reader, policy, rows, shard.rows, seed=self.seed, pad_id=self.tokenizer.pad_id, batch_size=1,
            token_budget=budget or (int(rows.tokens.max()) if world_size > 1 else None), pad_multiple=self.row_multiple,
            every_token=every_token, rope_factor=self.rope_factor,
        )  # fmt: skip
        return forward_rows(model, batches_of_rows, shard, device, policy.num_passes() if every_token else 1)

    def region_batches(
        self, reader: DocumentSource, policy: MaskingPolicy, regions: Regions, **cutting: Any
    ) -> Iterator[tuple[int, LanguageBatch]]:
        """Yield (region, batch of one document of it) in order: ``SampleScoring.sample_batches``.

        cutting  further arguments of ``make_rows``
        """
        self.language.measures_errors = True
        rows = make_rows(regions, self.tokenizer, row_tokens=None, seed=self.seed, **cutting)
        batches_of_rows = evaluation_batches(
            reader, policy, rows, range(len(rows)), seed=self.seed, pad_id=self.tokenizer.pad_id, batch_size=1,
            token_budget=None, pad_multiple=self.row_multiple, rope_factor=self.rope_factor,
        )  # fmt: skip
        return zip(rows.region.tolist(), batches_of_rows, strict=True)

    def sample_error(self, output: LanguageOutput, batch: LanguageBatch) -> Tensor:
        """See ``ds4sci.tasks.SampleScoring``: mean over the tokens to predict, with their weights."""
        assert output.errors is not None
        return (output.errors * output.weights).sum() / output.weights.sum().clamp(min=1e-12)

    def save_assets(self, folder: Path) -> None:
        """Write the configuration of the model and the tokenizer into ``folder``."""
        self.language.save_assets(folder)
        self.tokenizer.hf_tokenizer.save_pretrained(folder)

    def pretrained(self, *, adapter: bool = False) -> tuple[nn.Module, Any]:
        """Return (model, tokenizer) of transformers, ready for ``save_pretrained``.

        Adapters are merged into the weights unless ``adapter`` is set. See ``LanguageModel.pretrained``.
        """
        model = self.language.to_pretrained(adapter=adapter, rope_factor=self.rope_factor, length=self.document_length)
        return model, self.tokenizer.hf_tokenizer

    def export(self, folder: Path, *, adapter: bool, started_with: Mapping[str, Any]) -> None:
        """Write a Hugging Face folder: configuration, safetensors, tokenizer. See ``ds4sci.tasks.Exportable``."""
        base = _base_model(started_with["model"]) if adapter and self.language.config.lora is not None else ""
        model: Any
        model, tokenizer = self.pretrained(adapter=adapter)
        if adapter:
            for one in model.peft_config.values():
                one.base_model_name_or_path = base
                one.task_type = PEFT_TASK_TYPES[self.language.kind]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def asset_overrides(run: Path) -> list[str]:
    """Return the overrides that load ``run`` from its assets, wherever the model came from."""
    folder = run / ASSETS_DIR
    if not (folder / "config.json").is_file():
        return []
    overrides = [
        f'model.path="{folder}"',
        "model.load_weights=false",
        "model.config={}",
        "model.overrides={}",
        "data.tokenizer={}",
    ]
    if (folder / SEQUENCES_FILE).is_file():  # token classification has none, nor have older runs
        overrides.append(
            f"data.alphabet={json.loads((folder / SEQUENCES_FILE).read_text(encoding='utf-8'))['alphabet']}"
        )
    return overrides


def parallel_units(config: Any) -> list[ParallelUnit]:
    """Return the attention heads, which Ulysses divides, and the layers, which a pipeline divides."""
    if (counts := language.attention_heads(config.model)) is None:
        return []
    layers, heads, key_heads = counts
    return [
        ParallelUnit("attention heads", heads),
        ParallelUnit("key and value heads", key_heads, shared=True),
        ParallelUnit("layers", layers, axis="pipeline"),
    ]


def reject_layer_dropping(model: nn.Module) -> None:
    """Raise ValueError if ``model`` skips layers at random.

    Ranks that share rows draw independently, and would wait for each other in different layers.
    """
    for name, module in model.named_modules():
        rate = getattr(module, "layerdrop", 0.0)
        if isinstance(rate, float) and rate > 0:
            raise ValueError(
                f"parallel.sequence: {name or type(module).__name__} skips layers at random (layerdrop = {rate}), and "
                "ranks that share rows would each skip different ones; set model.overrides.layerdrop=0.0, or remove "
                "parallel.sequence"
            )


def _base_model(settings: Mapping[str, Any]) -> str:
    """Return ``model.path`` of the run as it was started: a hub name, or an absolute folder.

    Raises ValueError for a model with new weights: no folder has them, so an adapter cannot name its base.
    """
    path = settings.get("path")
    if path is None or not settings.get("load_weights", True):
        raise ValueError(
            "the adapters of this run belong to a base model with new weights, which no other folder has; export the "
            "merged model, without --adapter"
        )
    return str(Path(path).resolve()) if Path(path).exists() else str(path)
