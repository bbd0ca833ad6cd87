"""One named type per arrow of the data flow, and the names of the axes.

file → ``Record`` (parsed, Å) → ``Features`` (one example) → ``Batch`` (padded, masked) → ``Output`` → loss.

Axis glossary, used in every docstring:
b batch · s MSA rows · e extra MSA rows · n residues (tokens) · q, k query and key positions · a atoms ·
h heads · d channels per head · c channels · p points · l structure-module iterations · 37/14 atom layouts of AlphaFold.

This module imports neither torch nor anything else of ds4sci, so that the numpy half of ``ds4sci.data`` can use it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

IGNORED = -100
"""A label that stands for none."""

RESIDUES = "ARNDCQEGHILKMFPSTWYV"
"""The twenty amino acids in AlphaFold's order; index 20 is X (unknown)."""

MSA_ALPHABET = RESIDUES + "X-"
"""Letters of an MSA row: 0–19 residues, 20 X, 21 gap. Index 22, used only as a feature, is the BERT mask token."""


@dataclass(frozen=True)
class Msa:
    """An alignment to a query of n residues; row 0 is the query.

    sequences  uint8 [s, n], indices into ``MSA_ALPHABET``
    deletions  int32 [s, n], residues deleted (lower case in A3M) just before each column
    names      s names, as in the file
    """

    sequences: np.ndarray
    deletions: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """One chain as parsed: what the file says, in Å, with nothing left out silently.

    id             e.g. ``1UBQ_A``
    sequence       n letters of the whole entity (``RESIDUES`` + X), modified residues as their parent
    atom_positions float32 [n, 37, 3] Å, 0 where absent (atom order: ``ds4sci.chemistry.residue_constants.ATOM37``)
    atom_mask      bool [n, 37], True = coordinates present
    residue_index  int32 [n], position in the entity, rising (0-based); a jump is a chain break
    b_factors      float32 [n, 37] Å², or None
    dssp           n letters of DSSP's 8 states with C for loop and ``?`` unknown, or None
    profile        float32 [n, 20] amino-acid frequencies in ``RESIDUES`` order, or None
    msa            alignment to ``sequence``, or None
    resolution     Å, or None
    """

    id: str
    sequence: str
    atom_positions: np.ndarray
    atom_mask: np.ndarray
    residue_index: np.ndarray
    b_factors: np.ndarray | None = None
    dssp: str | None = None
    profile: np.ndarray | None = None
    msa: Msa | None = None
    resolution: float | None = None


@dataclass(frozen=True)
class Features:
    """One example, cropped and sampled, numpy; the feature names and sizes of AlphaFold 2's Table 1.

    aatype          int64 [n], 0–20
    residue_index   int64 [n]
    msa_feat        float32 [s, n, 49]: one-hot 23 · has_deletion · deletion_value · cluster profile 23, mean deletion
    msa_mask        bool [s, n], True = real
    extra_msa_feat  float32 [e, n, 25]: one-hot 23 · has_deletion · deletion_value; e may be 0
    extra_msa_mask  bool [e, n]
    true_msa        int64 [s, n], letters before BERT masking
    masked_msa      bool [s, n], True = to be predicted by the masked-MSA head
    atom_positions  float32 [n, 37, 3] Å
    atom_mask       bool [n, 37]
    secondary       int64 [n]: 0 helix (HGI), 1 strand (EB), 2 loop, -1 unknown
    resolution      float32 [], Å, 0 = unknown
    """

    id: str
    aatype: np.ndarray
    residue_index: np.ndarray
    msa_feat: np.ndarray
    msa_mask: np.ndarray
    extra_msa_feat: np.ndarray
    extra_msa_mask: np.ndarray
    true_msa: np.ndarray
    masked_msa: np.ndarray
    atom_positions: np.ndarray
    atom_mask: np.ndarray
    secondary: np.ndarray
    resolution: np.ndarray


@dataclass(frozen=True)
class Batch:
    """``Features`` of b examples, padded to one length and stacked; every array gains a leading b.

    token_mask  bool [b, n], True = real residue (padding is False)
    ids         b record ids
    recycling   passes without gradient before the last one; equal on all ranks
    step        optimizer step that this batch belongs to
    progress    step / steps of the run, in [0, 1]
    """

    ids: tuple[str, ...]
    aatype: Tensor
    residue_index: Tensor
    token_mask: Tensor
    msa_feat: Tensor
    msa_mask: Tensor
    extra_msa_feat: Tensor
    extra_msa_mask: Tensor
    true_msa: Tensor
    masked_msa: Tensor
    atom_positions: Tensor
    atom_mask: Tensor
    secondary: Tensor
    resolution: Tensor
    recycling: int = 0
    step: int = 0
    progress: float = 0.0

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``: the only host-to-device crossing of the data."""
        return _moved(self, device)


def _moved(batch: Any, device: torch.device | str, stay: tuple[str, ...] = ()) -> Any:
    """``batch`` with its tensors on ``device``, but for those that ``stay``."""
    moved: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if hasattr(value, "to") and field.name not in stay:
            moved[field.name] = value.to(device, non_blocking=True)
    return replace(batch, **moved)


@dataclass(frozen=True)
class LanguageBatch:
    """b rows of n tokens, each row one document or several packed side by side; the padding is in no document.

    input_ids     int64 [b, n]
    labels        int64 [b, n], the token to be predicted here; -100 = nothing is. Shifted already for causal models
    weights       float32 [b, n], of each token's loss
    position_ids  int64 [b, n], from 0 in every document
    spans         int64 [m, 2], first token and the one after the last of each document, in the rows laid end to end;
                  always on the CPU
    marked        bool [b, n], True = the label is soft-masked (lower case) in the file
    ids           names of the documents: RECORD:FIRST-LAST, 1-based residues
    tokens        real tokens, special ones included
    step          optimizer step that this batch belongs to
    rope_factor   positions are divided by this (linear position interpolation)
    residues      int64 [b, n], residues that the label counts for: each residue of a row counts at most once; None
                  where there are no residues to count
    """

    ids: tuple[str, ...]
    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    position_ids: Tensor
    spans: Tensor
    marked: Tensor
    tokens: int
    step: int = 0
    rope_factor: float = 1.0
    residues: Tensor | None = None

    def to(self, device: torch.device | str) -> LanguageBatch:
        """The same batch on ``device``; ``spans`` stay on the CPU, where kernels plan by them."""
        return _moved(self, device, stay=("spans",))


@dataclass(frozen=True)
class LanguageOutput:
    """What a language model says of this rank's part of the rows: s = n, or n / P under sequence parallelism.

    losses   fp32 [b, s], nats of each label, 0 where there is none
    right    bool [b, s], True = the label is what the model finds likeliest
    labels   int64 [b, s]
    weights  float32 [b, s]
    marked   bool [b, s]
    """

    losses: Tensor
    right: Tensor
    labels: Tensor
    weights: Tensor
    marked: Tensor


@dataclass(frozen=True)
class OperatorBatch:
    """m functions at points that they share.

    functions  float32 [m, q], values at the sensors
    points     point set → float32 [n, d]; without residuals ``{"grid": …}``
    given      name → float32 [m, n], what the equation knows of the functions at its points
    ids        names of the functions
    residuals  whether the equation's residuals are asked for, or u on the grid
    step       optimizer step that this batch belongs to
    """

    ids: tuple[str, ...]
    functions: Tensor
    points: dict[str, Tensor]
    given: dict[str, Tensor]
    residuals: bool = True
    step: int = 0

    def to(self, device: torch.device | str) -> OperatorBatch:
        """The same batch on ``device``."""
        points, given = (
            {name: x.to(device, non_blocking=True) for name, x in own.items()} for own in (self.points, self.given)
        )
        return replace(self, functions=self.functions.to(device, non_blocking=True), points=points, given=given)


@dataclass(frozen=True)
class Output:
    """What the structure model says of a batch; logits of an absent head are None.

    rotations, translations  [l, b, n, 3, 3] and [l, b, n, 3] Å: backbone frames after each structure-module iteration
    angles, raw_angles       [l, b, n, 7, 2]: sin, cos of ω φ ψ χ1–4, of unit length and before normalisation
    atom37                   [b, n, 37, 3] Å, 0 for atoms the residue has not
    frames8                  ([b, n, 8, 3, 3], [b, n, 8, 3]) rigid groups of the last iteration
    start                    ([b, n, 3, 3], [b, n, 3]) the frames that the first iteration began with
    pair, msa0               [b, n, n, c_z], [b, n, c_m]: with ``atom37`` what recycling feeds back
    """

    rotations: Tensor
    translations: Tensor
    angles: Tensor
    raw_angles: Tensor
    atom37: Tensor
    frames8: tuple[Tensor, Tensor]
    start: tuple[Tensor, Tensor]
    pair: Tensor
    msa0: Tensor
    plddt_logits: Tensor
    distogram_logits: Tensor
    masked_msa_logits: Tensor | None = None
    resolved_logits: Tensor | None = None
    secondary_logits: Tensor | None = None


@dataclass(frozen=True)
class StemOutput:
    """What the structure model says before its trunk has joined in (``stem.stem_only_fraction``).

    start             ([b, n, 3, 3], [b, n, 3] Å) frames along the predicted chain
    secondary_logits  [b, n, 3], or None without that head
    """

    start: tuple[Tensor, Tensor]
    secondary_logits: Tensor | None


@dataclass(frozen=True)
class Prediction:
    """One predicted chain, numpy, without padding.

    atom37    float32 [n, 37, 3] Å
    atom_mask bool [n, 37], True = atom exists in the residue and was placed
    plddt     float32 [n], 0–100
    distances float32 [n, n] Å, expected Cβ–Cβ distance under the distogram
    contacts  float32 [n, n], probability that the Cβ–Cβ distance is below 8 Å
    secondary float32 [n, 3], probability of helix, strand, loop, or None without that head
    """

    id: str
    sequence: str
    residue_index: np.ndarray
    atom37: np.ndarray
    atom_mask: np.ndarray
    plddt: np.ndarray
    distances: np.ndarray
    contacts: np.ndarray
    secondary: np.ndarray | None = None
