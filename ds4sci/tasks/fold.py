"""Task: predict protein structures, with AlphaFold 2's losses; the best checkpoint has the highest lDDT-Cα."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ds4sci.chemistry import residue_constants
from ds4sci.chemistry.chains import separate_chains
from ds4sci.config.task_module import ParallelUnit
from ds4sci.data.alignments.profile import MsaInput
from ds4sci.data.loader import Plan, batches, make_pass_rng, make_rng
from ds4sci.data.sample_order import OrderConfig, Share
from ds4sci.data.sample_pools import WorkerType
from ds4sci.data.sample_schedule import SampleKeys, SampleSchedule
from ds4sci.data.sample_selection import identity_of
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.chain_sampling import (
    DistillationConfig,
    SamplingConfig,
    TrainingChains,
    chain_epochs,
)
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.features import FeatureConfig, featurize, is_resampled
from ds4sci.data.text_files import resolve_data_path
from ds4sci.geometry import distogram_centres
from ds4sci.losses.complexes import align_record
from ds4sci.losses.fold import LossConfig, sample_losses
from ds4sci.metrics import chain_metrics, mean_metrics
from ds4sci.models import fold, fold_stage, published_weights
from ds4sci.models.prediction_memory import prediction_bytes
from ds4sci.models.refine import refine
from ds4sci.models.relax import relax
from ds4sci.models.weight_fit import FittedWeights
from ds4sci.nn.heads import aligned_errors, plddt
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.parallel.pipeline import PipelineStage, StageParts
from ds4sci.tasks import Evaluation
from ds4sci.tasks.capabilities import Split
from ds4sci.tasks.evaluations.structures import structure_evaluation
from ds4sci.tasks.miniatures import fold_miniature
from ds4sci.tasks.sampled_task import SampledTask
from ds4sci.types import RESIDUES, Batch, ChainIds, Features, Output, Prediction, Record, StemOutput

RESIDUE_CODES = RESIDUES + "X"
"""One-letter code of each residue type; X is unknown."""

CA = residue_constants.ATOM37_INDEX["CA"]

CONTACT_CUTOFF = 8.0
"""Å. Two residues are in contact if their Cβ atoms are closer than this."""


class DataConfig(OrderConfig, SampleKeys):
    """``[data]``: training and validation chains, their features and their order."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    train: Path
    """Chain set (``.npz``) for training, relative to the current folder or to the root of the repository."""
    valid: Path
    """Chain set for validation; it should have no homologues of the training chains."""
    features: FeatureConfig = FeatureConfig()
    """Input of the model (alignment, profile or sequence) and how it is sampled."""
    sampling: SamplingConfig | None = None
    """``[data.sampling]``: choose training chains by cluster and length, as AlphaFold 2 does; otherwise each chain is
    used once per epoch."""
    distillation: DistillationConfig | None = None
    """``[data.distillation]``: mix predicted structures into the training chains."""
    plan: Plan = Plan()
    """Crop lengths over the run, recycling, padding."""
    workers: int = Field(0, ge=0)
    """Threads or processes that prepare batches in advance; 0 = in the training loop. Does not change the examples."""
    worker_type: WorkerType = "thread"
    """``process``: workers are processes, each with its own copy of the chain set: for alignments, whose features take
    long."""
    evaluation_chains: int = Field(0, ge=0)
    """Number of chains of ``valid`` that evaluations during training score, evenly spaced over the set; 0 = all."""
    evaluation_batch: int = Field(8, ge=1)
    """Chains per batch in evaluations."""
    evaluation_recycling: int = Field(3, ge=0)
    """Recycling passes in evaluation and prediction."""
    prediction_recycling_tolerance: float = Field(0.0, ge=0)
    """Å. Predictions and evaluations of a finished run end recycling when the distances of Cα change by less from one
    pass to the next (root mean square); 0 = all passes. 0.5 in AlphaFold-Multimer."""
    evaluation_refinement: int = Field(0, ge=0)
    """Steps of refinement by the predicted distogram (``ds4sci.models.refine``) in evaluation and prediction; 0 =
    none."""
    evaluation_relaxation: int = Field(0, ge=0)
    """Steps of restrained relaxation (``ds4sci.models.relax``) in evaluation and prediction; 0 = none."""


class Config(BaseModel):
    """The run file's sections that this task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: fold.Config = fold.Config()
    """Sizes of the model."""
    data: DataConfig
    """Chains and features."""
    loss: LossConfig = LossConfig()
    """Weights of the loss."""

    @model_validator(mode="after")
    def _templates_are_used(self) -> Config:
        if self.data.features.max_templates and not self.model.template.blocks:
            raise ValueError(
                f"data.features.max_templates = {self.data.features.max_templates}, but the model has no templates; "
                "set model.template.blocks (2 in AlphaFold 2) or data.features.max_templates=0"
            )
        return self


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.miniatures``."""
    return fold_miniature(config, folder)


def build(config: Config, *, seed: int, steps: int) -> FoldTask:
    """Return the task for a run of ``steps`` steps, with a model initialised from ``seed``."""
    return FoldTask(config, seed=seed, steps=steps)


def parallel_units(config: Config) -> list[ParallelUnit]:
    """Return what axial parallelism divides, residues and channels, and the blocks, which a pipeline divides."""
    evoformer = config.model.evoformer
    shortest = min(crop for phase in config.data.plan.phases for crop in phase.crops)
    return [
        ParallelUnit("residues of the shortest crop", shortest),
        ParallelUnit("channels of the triangle multiplication", evoformer.c_multiplication),
        ParallelUnit("Evoformer blocks", evoformer.blocks, axis="pipeline"),
    ]


def check_data(config: Config) -> None:
    """Raise ValueError for a chain set that does not exist, or has complexes that the model does not take."""
    data = config.data
    sets = {"data.train": data.train, "data.valid": data.valid}
    if data.distillation is not None:
        sets["data.distillation.chains"] = data.distillation.chains
    for key, path in sets.items():
        try:
            has_complexes = ChainSet.stores_complexes(resolve_data_path(path))
        except OSError as error:
            raise ValueError(f"{key}: {error}") from error
        if has_complexes and not takes_complexes(config):
            raise _refused_complexes(f"{key} = {str(path)!r}")


def takes_complexes(config: Config) -> bool:
    """Return whether the model distinguishes the chains of a complex: ``model.kind = "multimer"``."""
    return config.model.kind == "multimer"


def takes_templates(config: Config) -> bool:
    """Return whether examples have templates, which are then those of a model that reads them."""
    return config.data.features.max_templates > 0


def _refused_complexes(source: str) -> ValueError:
    return ValueError(
        f"{source}: a complex of several chains, which this model would join to one chain; use a model of complexes, or"
        " a chain set built without --complexes"
    )


class FoldTask(SampledTask):
    """Structure prediction. See ``ds4sci.tasks.Task`` and ``ds4sci.tasks.StructurePredictor`` for the methods."""

    target = "lddt_ca"
    shares_random_state = True

    def __init__(self, config: Config, *, seed: int, steps: int) -> None:
        self.config, self.seed, self.steps = config, seed, steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.fold_model = fold.FoldModel(config.model)
            self.model: nn.Module = self.fold_model
        features = config.data.features
        masked = features.prediction_masked_msa_probability
        inference = {"masked_msa_probability": masked, "subsample_templates": False}  # the best templates
        self.evaluation_features = features.model_copy(update=inference)

    def set_parallel_groups(self, group: SequenceGroup) -> None:
        """Shard the rows of every example over the ranks of ``group`` (axial parallelism)."""
        self.fold_model.set_parallel_group(group)

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[Batch]:
        data = self.config.data
        share = Share(start_step, rank, world_size, micro_batch_size, accumulation_steps)
        schedule = self.start_schedule(self.schedule, share, workers=data.workers, order=data)
        return batches(
            self.train_chains,
            seed=self.seed,
            start_step=start_step,
            steps=self.steps,
            rank=rank,
            world_size=world_size,
            micro_batch_size=micro_batch_size,
            accumulation_steps=accumulation_steps,
            plan=data.plan,
            feature_config=data.features,
            workers=data.workers,
            worker_type=data.worker_type,
            order=data,
            delivery=self.delivery,
            schedule=schedule.at,
        )

    @property
    def samples(self) -> SampleKeys:
        """See ``SampledTask``."""
        return self.config.data

    @cached_property
    def train_chains(self) -> ChainSet | TrainingChains:
        """The chain set ``data.train``, and predicted structures after it. Predictions do not open it."""
        data = self.config.data
        path = resolve_data_path(data.train)
        known = ChainSet.open(path)
        if known.has_complexes:
            self._check_complexes(str(path))
        if data.distillation is None:
            return known
        chains = TrainingChains(known, data.distillation.chains)
        if chains.predicted.has_complexes:
            self._check_complexes(str(data.distillation.chains))
        return chains

    @cached_property
    def schedule(self) -> SampleSchedule:
        """Order and factors of the training chains."""
        data, chains = self.config.data, self.train_chains
        if data.sampling is None and data.distillation is None:
            return SampleSchedule(data, chains.ids, self.seed)
        known = chains.known if isinstance(chains, TrainingChains) else chains
        make = partial(
            chain_epochs, known=known, sampling=data.sampling, distillation=data.distillation, seed=self.seed
        )
        return SampleSchedule(data, chains.ids, self.seed, make)

    def train_samples(self) -> int:
        return self.schedule.epochs.size

    def fixed_inputs(self) -> dict[str, str]:
        """See ``Task.fixed_inputs``: also what draws and mixes chains."""
        data = self.config.data
        mixed = (
            {} if data.distillation is None else {"data.distillation": f"probability {data.distillation.probability}"}
        )
        return super().fixed_inputs() | identity_of(sampling=data.sampling) | mixed

    def sample_names(self) -> list[str]:
        """See ``ds4sci.tasks.SampleScoring``."""
        return self.train_chains.ids

    def sample_batches(self, split: Split = "train") -> Iterator[tuple[int, Batch]]:
        """See ``ds4sci.tasks.SampleScoring``: chains at full length, with the features of evaluations."""
        data = self.config.data
        chains = self.train_chains if split == "train" else ChainSet.open(resolve_data_path(data.valid))
        for number, record in enumerate(chains):
            yield number, collate([self.featurize(record)], recycling=data.evaluation_recycling, progress=1.0)

    def sample_error(self, output: Output | StemOutput, batch: Batch) -> None:
        """See ``ds4sci.tasks.SampleScoring``: coordinates have no classes."""

    def read_weights(self, file: Path, *, skip: Sequence[str], new: Sequence[str]) -> FittedWeights:
        """See ``ds4sci.tasks.PublishedWeights``: files of AlphaFold, OpenFold and ds4sci."""
        return published_weights.read_for(self.fold_model, file, skip=skip, new=new)

    def export(self, folder: Path, *, adapter: bool, started_with: Mapping[str, Any]) -> None:
        """See ``ds4sci.tasks.Exportable``: ``openfold.pt``, the state dict of OpenFold's model."""
        if adapter:
            raise ValueError("a structure model is exported whole, with merged adapters (model.lora); omit --adapter")
        published_weights.export_openfold(self.fold_model, folder / "openfold.pt")

    @property
    def reorders_samples(self) -> bool:
        return self.config.data.order == "ready"

    def pipeline_parts(self, stages: int) -> Sequence[StageParts]:
        """Return what each of ``stages`` pipeline stages holds."""
        return fold_stage.partition(self.fold_model, stages)

    def pipeline_stage(self, stage: int, stages: int) -> PipelineStage:
        """Return a pipeline stage of the model; other parameters are removed from ``model``."""
        return fold_stage.FoldStage(self.fold_model, stage, stages)

    def loss(self, output: Output | StemOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        shards = self.fold_model.shards(batch)
        losses, terms = sample_losses(output, batch, self.config.loss, shards)
        return self.mean_loss(losses, batch, group=shards.group), terms

    def evaluations(self) -> dict[str, Evaluation]:
        data = self.config.data
        validation = resolve_data_path(data.valid)
        structures = structure_evaluation(self, batch_size=data.evaluation_batch, validation=validation)
        return super().evaluations() | {"structures": structures}

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        chains = ChainSet.open(resolve_data_path(self.config.data.valid))
        count = self.config.data.evaluation_chains or len(chains)
        chosen = np.unique(np.linspace(0, len(chains) - 1, min(count, len(chains))).round().astype(int))
        return self.score([chains[int(i)] for i in chosen], model, rank=rank, world_size=world_size, device=device)

    def score(
        self, records: Sequence[Record], model: nn.Module, *, rank: int = 0, world_size: int = 1, device: torch.device
    ) -> list[dict[str, Any]]:
        """Predict this rank's shard of ``records`` at full length; return a row of ``chain_metrics`` for each."""
        records = sorted(records, key=lambda record: len(record.sequence))
        size = self.config.data.evaluation_batch
        groups = [records[i : i + size] for i in range(0, len(records), size)]
        # ZeRO-3 gathers parameters collectively, so every rank predicts equally often; the last batch may be a repeat
        rounds = -(-len(groups) // world_size)
        rows: list[dict[str, Any]] = []
        for step in range(rounds):
            index = step * world_size + rank
            group = groups[min(index, len(groups) - 1)]
            predictions = self.predict([self.featurize(record) for record in group], device, model)
            if index < len(groups):
                pairs = zip(predictions, group, strict=True)
                rows += [chain_metrics(p, align_record(record, p.atom37[:, CA])) for p, record in pairs]
        return rows

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        return mean_metrics(rows)

    @property
    def msa_input(self) -> MsaInput:
        """Input of the model: ``sequence``, ``profile`` or ``msa``."""
        return self.config.data.features.msa_input

    def _check_complexes(self, source: str) -> None:
        """Raise ValueError, naming ``source``, unless the model takes complexes."""
        if not takes_complexes(self.config):
            raise _refused_complexes(source)

    def featurize(self, record: Record) -> Features:
        """Return the features of ``record`` for inference: full length, the best templates, drawn by the seed."""
        if record.chain_ids is not None:
            self._check_complexes(record.id)
        return featurize(
            record, self.evaluation_features, make_rng(self.seed, 0),
            earlier_passes=self.config.data.evaluation_recycling, pass_rng=make_pass_rng(self.seed), on_request=True,
        )  # fmt: skip

    def prediction_bytes(self, record: Record) -> int:
        """Estimate the memory in bytes of predicting ``record`` as a batch of one."""
        features, data = self.evaluation_features, self.config.data
        depth = len(record.msa.names) if record.msa is not None and features.msa_input == "msa" else 1
        s = min(depth, features.max_clusters)
        return prediction_bytes(
            self.config.model,
            len(record.sequence),
            s,
            min(depth - s, features.max_extra),
            features.max_templates,
            recycling=data.evaluation_recycling,
            refinement=data.evaluation_refinement,
            resampled=is_resampled(record, features),
        )

    def predict(
        self, features: Sequence[Features], device: torch.device, model: nn.Module | None = None
    ) -> list[Prediction]:
        """Predict chains as one padded batch, in evaluation mode, without gradients."""
        data = self.config.data
        batch = collate(list(features), recycling=data.evaluation_recycling)
        if model is None and self.fold_model.group.size == 1:  # ranks that share weights must run equally many passes
            batch = replace(batch, recycling_tolerance=data.prediction_recycling_tolerance)
        model, batch = self.model if model is None else model, batch.to(device)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                output = model(batch)
        finally:
            model.train(training)
        shards, predictions = self.fold_model.shards(batch), []
        confidence = [self._pair_confidence(output, batch, row, len(one.aatype)) for row, one in enumerate(features)]
        output = replace(output, aligned_error_logits=None)  # freed before the probabilities of the distogram exist
        for row, one in enumerate(features):
            # one chain at a time: the distogram is the largest output
            distogram = shards.gather_residues(output.distogram_logits[row : row + 1], 1)[0]
            made = self._prediction(one, output, row, distogram)
            predictions.append(replace(made, recycling=output.recycling, **confidence[row]))
        return predictions

    def _pair_confidence(self, output: Output, batch: Batch, row: int, n: int) -> dict[str, Any]:
        """``pae``, ``ptm`` and ``iptm`` of the chain or complex ``row`` of n residues, if the model has the head."""
        if output.aligned_error_logits is None:
            return {}
        shards = self.fold_model.shards(batch)
        asym_id = rows = None
        if batch.asym_id is not None:
            asym_id, rows = batch.asym_id[row, :n], shards.own_residues(batch.asym_id[row], 0)
        own = aligned_errors(output.aligned_error_logits[row, :, :n], asym_id, rows)
        pae, tm = (shards.gather_residues(x, 0)[:n].cpu() for x in own[:2])
        made = {"pae": pae.numpy(), "ptm": float(tm.max())}
        if own.interface_tm is not None:
            made["iptm"] = float(shards.gather_residues(own.interface_tm, 0)[:n].max())
        return made

    def _prediction(self, features: Features, output: Output, row: int, distogram: Tensor) -> Prediction:
        """The prediction of the chain ``row`` of a batch, without padding; ``distogram`` holds its logits."""
        data, n = self.config.data, len(features.aatype)
        atoms, atom_mask = output.atom37[row, :n].float().cpu(), residue_constants.ATOM37_MASK[features.aatype]
        probability = distogram[:n, :n].float().softmax(-1).cpu()
        ids = None
        if features.asym_id is not None and features.entity_id is not None and features.sym_id is not None:
            ids = ChainIds(features.asym_id, features.entity_id, features.sym_id)
        mask, index = torch.from_numpy(atom_mask), torch.from_numpy(separate_chains(features.residue_index, ids))
        if data.evaluation_refinement:
            aatype = torch.from_numpy(features.aatype).long()
            atoms = refine(atoms, mask, aatype, index, probability, data.evaluation_refinement)
        if data.evaluation_relaxation:
            atoms = relax(atoms, mask, index, data.evaluation_relaxation)
        secondary = output.secondary_logits
        centres = distogram_centres(probability.shape[-1], probability)
        return Prediction(
            id=features.id,
            sequence="".join(RESIDUE_CODES[i] for i in features.aatype),
            residue_index=features.residue_index,
            atom37=atoms.numpy(),
            atom_mask=atom_mask,
            plddt=plddt(output.plddt_logits[row, :n]).cpu().numpy(),
            distances=(probability @ centres).numpy(),
            contacts=probability[..., centres < CONTACT_CUTOFF].sum(-1).numpy(),
            secondary=None if secondary is None else secondary[row, :n].float().softmax(-1).cpu().numpy(),
            chain_ids=ids,
        )
