"""Cluster files: TOML with nodes, GPUs, links, storage, stragglers and price, each figure with its source."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ds4sci.config.run_file import find_file
from ds4sci.scaling.collectives import Link, Placement

Dtype = Literal["bf16", "fp16", "tf32", "fp32"]


class LinkConfig(BaseModel):
    """``[intra_node]`` or ``[inter_node]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(ge=0)
    """Seconds per message."""
    bandwidth: float = Field(gt=0)
    """Bytes per second and direction: of a GPU within a node, of the whole node between nodes."""


class StorageConfig(BaseModel):
    """``[storage]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bandwidth: float = Field(gt=0)
    """Bytes per second that all nodes read together at most."""
    node_bandwidth: float = Field(gt=0)
    """Bytes per second that a node reads at most."""


class ClusterConfig(BaseModel):
    """A cluster file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Name of the system and its accelerator."""
    nodes: int = Field(gt=0)
    """Nodes of the system."""
    gpus_per_node: int = Field(gt=0)
    """Accelerators of a node that are one rank each. Dies of an MI250X count singly; on a CPU, the cores."""
    peak: dict[Dtype, float]
    """dtype → FLOP/s of dense matrix products of a GPU, by its data sheet."""
    achievable: float = Field(gt=0, le=1)
    """Fraction of ``peak`` that the forward and backward pass of a model reach without communication."""
    memory_gb: float = Field(gt=0)
    """Memory of a GPU in GB (2^30 bytes)."""
    memory_bandwidth: float = Field(gt=0)
    """Bytes per second of a GPU's memory."""
    intra_node: LinkConfig
    inter_node: LinkConfig
    storage: StorageConfig
    step_noise: float = Field(ge=0, lt=1)
    """Standard deviation of the compute time of a step between ranks, as a fraction of its mean."""
    overlap: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the backward pass behind which reductions of gradients hide, if the DeepSpeed JSON overlaps them."""
    price_per_node_hour: float = Field(default=0.0, ge=0)
    """Price of a node-hour in a currency of your choice; 0 = not stated."""
    sources: dict[str, str] = {}
    """Key → where its value is from."""

    def placement(self, ranks: int, stride: int = 1) -> Placement:
        """Place a group of ``ranks`` ranks whose neighbours are ``stride`` ranks apart, ranks filling node by node.

        All GPUs of a node communicate at the same time, and share its network equally.
        """
        per_node = max(1, min(self.gpus_per_node // stride, ranks))
        inter = Link(self.inter_node.alpha, self.inter_node.bandwidth / self.gpus_per_node)
        return Placement(ranks, per_node, Link(self.intra_node.alpha, self.intra_node.bandwidth), inter)

    def nodes_of(self, ranks: int) -> int:
        """Nodes that ``ranks`` ranks occupy."""
        return -(-ranks // self.gpus_per_node)

    def peak_of(self, dtype: str) -> float:
        """Peak FLOP/s in ``dtype``. Raises ValueError if the file does not state it."""
        found = {str(key): value for key, value in self.peak.items()}.get(dtype)
        if found is None:
            raise ValueError(f"cluster {self.name}: no peak for {dtype}; add peak.{dtype} (FLOP/s of a GPU)")
        return found


def load(file: Path | str) -> ClusterConfig:
    """Read a cluster file. Raises ValueError with file, key and what was expected."""
    path = find_file(Path(file), near=None, what="cluster file")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not TOML ({error}); expected a cluster file such as configs/clusters/frontier.toml"
        ) from None
    try:
        return ClusterConfig.model_validate(tree)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
        raise ValueError(f"{path}: " + "; ".join(lines) + "; see docs/scaling.md for the keys") from None
