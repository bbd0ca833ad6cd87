"""A structure-prediction task outside the package, with every optional capability: ``tests.support.third_party_task``.

The model learns the distance between consecutive Cα atoms and predicts straight chains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.data.alignments.profile import MsaInput
from ds4sci.tasks import Evaluation, EvaluationRequest, EvaluationResult, Task
from ds4sci.tasks.evaluations.structures import structure_evaluation
from ds4sci.types import Prediction, Record

ATOMS = ("N", "CA", "C", "O")


class ModelConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    initial_distance: float = 1.0


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: ModelConfig = ModelConfig()


@dataclass(frozen=True)
class DistanceBatch:
    ids: tuple[str, ...]
    step: int

    def to(self, device: Any) -> DistanceBatch:
        return self


class DistanceModel(nn.Module):
    def __init__(self, initial: float) -> None:
        super().__init__()
        self.distance = nn.Parameter(torch.tensor([initial]))

    def forward(self, batch: DistanceBatch) -> Tensor:
        return self.distance.float().expand(len(batch.ids))


class DistanceTask(Task):
    target = "score"
    msa_input: MsaInput = "sequence"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.model = DistanceModel(config.model.initial_distance)

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[DistanceBatch]:
        step = start_step
        while True:
            for _ in range(accumulation_steps):
                yield DistanceBatch(("pair",) * micro_batch_size, step)
            step += 1

    def loss(self, output: Tensor, batch: DistanceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (output - 3.8).square().mean()
        return loss, {"square": loss.detach()}

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        return [{"id": "distance", "error": abs(float(model(DistanceBatch(("pair",), 0))[0]) - 3.8)}]

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        return {"score": -sum(row["error"] for row in rows) / len(rows)}

    def featurize(self, record: Record) -> Record:
        return record

    def predict(self, features: Sequence[Record], device: torch.device) -> list[Prediction]:
        return [self._straight(record) for record in features]

    def prediction_bytes(self, record: Record) -> int:
        return 0

    def _straight(self, record: Record) -> Prediction:
        n = len(record.sequence)
        atoms, mask = np.zeros((n, 37, 3), np.float32), np.zeros((n, 37), bool)
        for offset, name in enumerate(ATOMS):
            atoms[:, ATOM37_INDEX[name], 0] = float(self.model.distance[0]) * np.arange(n) + 0.5 * offset
            mask[:, ATOM37_INDEX[name]] = True
        distances = np.abs(np.subtract.outer(np.arange(n), np.arange(n))).astype(np.float32)
        return Prediction(
            id=record.id, sequence=record.sequence, residue_index=record.residue_index, atom37=atoms, atom_mask=mask,
            plddt=np.full(n, 50.0, np.float32), distances=distances, contacts=(distances < 2).astype(np.float32),
        )  # fmt: skip

    def evaluations(self) -> dict[str, Evaluation]:
        return super().evaluations() | {
            "structures": structure_evaluation(self),
            "composition": Evaluation(count_letters, inputs=("fasta",), options=("ngrams",)),
        }

    def export(self, folder: Path, *, adapter: bool, started_with: Mapping[str, Any]) -> None:
        np.save(folder / "distance.npy", self.model.distance.detach().numpy())


def count_letters(request: EvaluationRequest) -> EvaluationResult:
    lines = request.files["fasta"].read_text().splitlines()
    text = "".join(line for line in lines if not line.startswith(">"))
    counts = {letter: text.count(letter) for letter in sorted(set(text))}
    pairs = {"pairs": len(text) - 1} if request.options.get("ngrams") else {}
    attachments = {".txt": lambda file: file.write(text.encode())}
    return EvaluationResult({"counts": counts} | pairs, f"{len(text)} residues", attachments)


def build(config: Config, *, seed: int, steps: int) -> DistanceTask:
    return DistanceTask(config)
