"""Data types of the pipeline, one per step of the data flow, and the axis glossary.

file → ``Record`` (parsed, Å) → ``Features`` (one example) → ``Batch`` (padded, masked) → ``Output`` → loss.

Axis glossary, used in every docstring:
b batch · s MSA rows · e extra MSA rows · n residues (tokens) · q, k query and key positions · a atoms ·
h heads · d channels per head · c channels · p points · l structure-module iterations · 37/14 atom layouts of AlphaFold.

This module imports neither torch nor other ds4sci modules at run time, so the torch-free parts of ``ds4sci.data`` can
use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

IGNORE_INDEX = -100
"""Label of positions without a training target (PyTorch's ``ignore_index``)."""

RESIDUES = "ARNDCQEGHILKMFPSTWYV"
"""One-letter codes of the twenty amino acids in AlphaFold's order; index 20 is X (unknown)."""

MSA_ALPHABET = RESIDUES + "X-"
"""Letters of an MSA row: 0–19 residues, 20 X, 21 gap. Index 22, used only as a feature, is the BERT mask token."""


@dataclass(frozen=True)
class Msa:
    """A multiple sequence alignment (MSA) to a query of n residues; row 0 is the query.

    sequences  uint8 [s, n], indices into ``MSA_ALPHABET``
    deletions  int32 [s, n], residues deleted (lower case in A3M) immediately before each column
    names      s row names, as in the file
    """

    sequences: np.ndarray
    deletions: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class TemplateSet:
    """Known structures of t similar chains, aligned to a query of n residues, the best first.

    names           t names, such as ``1UBQ_A``
    aatype          uint8 [t, n]: 0–19 residues of the templates, 20 X, 21 gap (no residue at this position)
    atom_positions  float32 [t, n, 37, 3] Å, 0 where missing
    atom_mask       bool [t, n, 37], True = coordinates present
    """

    names: tuple[str, ...]
    aatype: np.ndarray
    atom_positions: np.ndarray
    atom_mask: np.ndarray


@dataclass(frozen=True)
class ChainIds:
    """Chains of a complex per residue, as in AlphaFold-Multimer; numbers count from 1, 0 is padding.

    asym_id    int64 [n], number of the chain, in the order of the complex
    entity_id  int64 [n], number of the sequence: equal chains have equal numbers
    sym_id     int64 [n], number of the chain among the chains of its entity
    """

    asym_id: np.ndarray
    entity_id: np.ndarray
    sym_id: np.ndarray


@dataclass(frozen=True)
class Record:
    """One parsed protein chain or complex. Coordinates are in Å; parsers report everything that they exclude.

    id             e.g. ``1UBQ_A``
    sequence       n one-letter codes of the whole entity (``RESIDUES`` + X), modified residues as their parent
    atom_positions float32 [n, 37, 3] Å, 0 where missing (atom order: ``ds4sci.chemistry.residue_constants.ATOM37``)
    atom_mask      bool [n, 37], True = coordinates present
    residue_index  int32 [n], position in the entity, 0-based, strictly increasing in a chain; a jump is a chain break
    b_factors      float32 [n, 37] Å², or None
    dssp           n letters of DSSP's 8 states, C for loop and ``?`` for unknown, or None
    profile        float32 [n, 20] amino-acid frequencies in ``RESIDUES`` order, or None
    msa            MSA with ``sequence`` as its query, or None
    resolution     Å, or None
    templates      templates with ``sequence`` as their query, or None
    chain_ids      chains of a complex, whose residues follow each other chain by chain; None for a single chain
    is_predicted   whether the structure is a prediction for training (self-distillation)
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
    templates: TemplateSet | None = None
    chain_ids: ChainIds | None = None
    is_predicted: bool = False


@dataclass(frozen=True)
class MsaSample:
    """One random sample of an alignment in a compact form: s clusters and e extra sequences of a crop of n residues.

    A recycling pass expands it to ``msa_feat`` and ``extra_msa_feat`` when it begins. Memory: (101 s + 5 e) n bytes;
    the features have (196 s + 100 e) n.

    letters                uint8 [s, n], residue codes after BERT masking
    deletion_values        float32 [s, n], 2/π · arctan(deletions / 3)
    profile                float32 [s, n, 23], cluster profile
    deletion_means         float32 [s, n], of the clusters, 2/π · arctan(mean / 3)
    extra_letters          uint8 [e, n], residue codes
    extra_deletion_values  float32 [e, n]
    """

    letters: np.ndarray
    deletion_values: np.ndarray
    profile: np.ndarray
    deletion_means: np.ndarray
    extra_letters: np.ndarray
    extra_deletion_values: np.ndarray


@dataclass(frozen=True)
class Features:
    """One cropped and sampled training example as numpy arrays; names and sizes follow AlphaFold 2's Table 1.

    aatype          int64 [n], 0–20
    residue_index   int64 [n]
    msa_feat        float32 [s, n, 49]: one-hot 23 · has_deletion · deletion_value · cluster profile 23, mean deletion
    msa_mask        bool [s, n], True = real
    extra_msa_feat  float32 [e, n, 25]: one-hot 23 · has_deletion · deletion_value; e may be 0
    extra_msa_mask  bool [e, n]
    true_msa        int64 [s, n], residue codes before BERT masking
    masked_msa      bool [s, n], True = target of the masked-MSA head
    atom_positions  float32 [n, 37, 3] Å
    atom_mask       bool [n, 37]
    secondary       int64 [n]: 0 helix (HGI), 1 strand (EB), 2 loop, -1 unknown
    resolution      float32 [], Å, 0 = unknown
    sample          number in the training set, −1 outside training
    factor          of the loss
    is_predicted    whether the coordinates are a prediction
    earlier_msa     samples of the alignment for the recycling passes before the last one, with the sizes of the last
                    one's; None = every pass has the same features

    Of t templates, or None without templates:

    template_aatype     int64 [t, n], 0–19, 20 X, 21 gap
    template_positions  float32 [t, n, 37, 3] Å, 0 where missing
    template_atom_mask  bool [t, n, 37]
    template_mask       bool [t], False = no such template

    Of a complex (``ChainIds``), or None for a single chain: asym_id, entity_id, sym_id, int64 [n].
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
    sample: int = -1
    factor: float = 1.0
    is_predicted: bool = False
    earlier_msa: Sequence[MsaSample] | None = None
    template_aatype: np.ndarray | None = None
    template_positions: np.ndarray | None = None
    template_atom_mask: np.ndarray | None = None
    template_mask: np.ndarray | None = None
    asym_id: np.ndarray | None = None
    entity_id: np.ndarray | None = None
    sym_id: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """``Features`` of b examples, padded to a common length and stacked along a leading axis b.

    token_mask  bool [b, n], True = real residue (padding is False)
    sample      int64 [b], and factor, float32 [b]; None = −1 and 1
    is_predicted  bool [b], True = the coordinates are a prediction; None = of no example
    ids         b record ids
    earlier_msa  ``Features.earlier_msa`` of each example, on the CPU until its pass begins; None = of no example
    recycling   recycling passes without gradient before the last pass; the same on all ranks
    recycling_tolerance  Å: no more recycling passes once the distances of Cα change by less (``distance_change``); 0 =
                all passes
    step        optimizer step of this batch
    progress    step / total steps of the run, in [0, 1]
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
    sample: Tensor | None = None
    factor: Tensor | None = None
    is_predicted: Tensor | None = None
    template_aatype: Tensor | None = None
    template_positions: Tensor | None = None
    template_atom_mask: Tensor | None = None
    template_mask: Tensor | None = None
    asym_id: Tensor | None = None
    entity_id: Tensor | None = None
    sym_id: Tensor | None = None
    earlier_msa: tuple[Sequence[MsaSample] | None, ...] | None = None
    recycling: int = 0
    recycling_tolerance: float = 0.0
    step: int = 0
    progress: float = 0.0

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on ``device``. This and ``earlier_msa`` are the only host-to-device transfers."""
        return _to_device(self, device)

    @property
    def chain_numbers(self) -> Tensor:
        """``asym_id``, or for single chains 1; padding is 0. int64 [b, n]."""
        return self.token_mask.long() if self.asym_id is None else self.asym_id

    def same_chain(self) -> Tensor:
        """Pairs of residues in the same chain, bool [b, n, n]; padding is like a chain."""
        return self.chain_numbers.unsqueeze(-1) == self.chain_numbers.unsqueeze(-2)


def _to_device(batch: Any, device: torch.device | str, keep_on_cpu: tuple[str, ...] = ()) -> Any:
    """Return ``batch`` with its tensors on ``device``, except the fields in ``keep_on_cpu``."""
    moved: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if hasattr(value, "to") and field.name not in keep_on_cpu:
            moved[field.name] = value.to(device, non_blocking=True)
    return replace(batch, **moved)


@dataclass(frozen=True)
class LanguageBatch:
    """b rows of n tokens; each row holds one document or several packed documents. Padding belongs to no document.

    input_ids     int64 [b, n]
    labels        int64 [b, n], target token of each position, ``IGNORE_INDEX`` (-100) = no target; already shifted for
                  causal models
    weights       float32 [b, n], loss weight of each token
    position_ids  int64 [b, n], counted from 0 in each document
    doc_spans     int64 [m, 2], start and end (exclusive) of each document in the flattened rows; always on the CPU
    soft_masked   bool [b, n], True = the label is soft-masked (lower case) in the file
    ids           document names: RECORD:FIRST-LAST, 1-based residues
    tokens        number of real tokens, special tokens included
    step          optimizer step of this batch
    rope_factor   divisor of the positions (linear position interpolation)
    residues      int64 [b, n], number of residues that each label accounts for; each residue of a row is counted at
                  most once. None if residues are not counted
    samples       number of the training sample of each document; empty if they are not numbered
    total_weight  denominator of the mean loss, where it is not the sum of ``weights``: documents that stand for others
                  have larger weights (``ds4sci.data.pruning``)
    """

    ids: tuple[str, ...]
    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    position_ids: Tensor
    doc_spans: Tensor
    soft_masked: Tensor
    tokens: int
    step: int = 0
    rope_factor: float = 1.0
    residues: Tensor | None = None
    samples: tuple[int, ...] = ()
    total_weight: float | None = None

    def to(self, device: torch.device | str) -> LanguageBatch:
        """Return the batch on ``device``; ``doc_spans`` stays on the CPU, where kernels plan their tiles."""
        return _to_device(self, device, keep_on_cpu=("doc_spans",))


@dataclass(frozen=True)
class LanguageOutput:
    """Per-token results of a language model on this rank: s = n, or n / P under sequence parallelism.

    losses       fp32 [b, s], negative log-likelihood of each label in nats, 0 without a label
    correct      bool [b, s], True = the label is the most likely token
    labels       int64 [b, s]
    weights      float32 [b, s]
    soft_masked  bool [b, s]
    errors       fp32 [b, s], distance of the predicted probabilities from the one-hot label; None if not measured
    """

    losses: Tensor
    correct: Tensor
    labels: Tensor
    weights: Tensor
    soft_masked: Tensor
    errors: Tensor | None = None


@dataclass(frozen=True)
class ArrayBatch:
    """b examples of one shape: images, volumes or fields, with channels before the spatial axes.

    ids      names of the examples
    inputs   float32 [b, c, …]
    targets  [b, …]: float32 values or int64 classes, as the task needs
    step     optimizer step of this batch
    sample   int64 [b], numbers in the training set; None outside training
    factor   float32 [b], factors of the losses; None = 1
    """

    ids: tuple[str, ...]
    inputs: Tensor
    targets: Tensor
    step: int = 0
    sample: Tensor | None = None
    factor: Tensor | None = None

    def to(self, device: torch.device | str) -> ArrayBatch:
        """Return the batch on ``device``."""
        return _to_device(self, device)


@dataclass(frozen=True)
class ImageOutput:
    """Results of a vision transformer for this rank's tokens: s of an example's 1 + n, or fewer under parallelism.

    values   logits [b, s, p, classes] of the p points of each patch (p = 1: of the example), or reconstructed patches
             [b, s, c · p]
    targets  int64 [b, s, p], −100 for none; or the patches to reconstruct, [b, s, c · p]
    index    int64 [b, s], number of each token: 0 class token, 1 + i patch i, −1 padding. Of reconstructed patches,
             those above 0 were hidden from the encoder
    """

    values: Tensor
    targets: Tensor
    index: Tensor


@dataclass(frozen=True)
class OperatorBatch:
    """m functions evaluated at the same points.

    functions  float32 [m, q], function values at the sensors
    points     name of the point set → float32 [n, d]; ``{"grid": …}`` if ``residuals`` is False
    given      name → float32 [m, n], known terms of the equation at its points
    ids        names of the functions
    residuals  True = compute the equation's residuals, False = compute u on the grid
    step       optimizer step of this batch
    """

    ids: tuple[str, ...]
    functions: Tensor
    points: dict[str, Tensor]
    given: dict[str, Tensor]
    residuals: bool = True
    step: int = 0

    def to(self, device: torch.device | str) -> OperatorBatch:
        """Return the batch on ``device``."""
        points, given = (
            {name: x.to(device, non_blocking=True) for name, x in own.items()} for own in (self.points, self.given)
        )
        return replace(self, functions=self.functions.to(device, non_blocking=True), points=points, given=given)


def in_double(batch: Any) -> Any:
    """Return ``batch`` with the tensors that a model in fp64 needs in fp64; models convert all others."""
    if isinstance(batch, Batch):
        templates = None if batch.template_positions is None else batch.template_positions.double()
        return replace(batch, atom_positions=batch.atom_positions.double(), template_positions=templates)
    if isinstance(batch, OperatorBatch):
        sets: dict[str, Any] = {
            name: {k: x.double() for k, x in getattr(batch, name).items()} for name in ("points", "given")
        }
        return replace(batch, functions=batch.functions.double(), **sets)
    return batch


@dataclass(frozen=True)
class Output:
    """Output of the structure model for a batch; logits of a disabled head are None.

    rotations, translations  [l, b, n, 3, 3] and [l, b, n, 3] Å: backbone frames after each structure-module iteration
    angles, raw_angles       [l, b, n, 7, 2]: (sin, cos) of ω φ ψ χ1–4, normalised and unnormalised
    atom37                   [b, n, 37, 3] Å, 0 for atoms that the residue does not have
    frames8                  ([b, n, 8, 3, 3], [b, n, 8, 3] Å) rigid groups of the last iteration
    initial_frames           ([b, n, 3, 3], [b, n, 3] Å) input frames of the first structure-module iteration
    pair, msa0               [b, n, n, c_z], [b, n, c_m]: recycled together with ``atom37``

    aligned_error_logits     [b, n, n, 64]: error of residue j (column) in the frame of residue i (row)
    recycling                recycling passes before the last one

    With axial parallelism, ``pair`` and the logits of pairs have this rank's n_r of n rows and ``masked_msa_logits``
    its MSA rows; what belongs to residues is whole on every rank.
    """

    rotations: Tensor
    translations: Tensor
    angles: Tensor
    raw_angles: Tensor
    atom37: Tensor
    frames8: tuple[Tensor, Tensor]
    initial_frames: tuple[Tensor, Tensor]
    pair: Tensor
    msa0: Tensor
    plddt_logits: Tensor
    distogram_logits: Tensor
    masked_msa_logits: Tensor | None = None
    resolved_logits: Tensor | None = None
    secondary_logits: Tensor | None = None
    aligned_error_logits: Tensor | None = None
    recycling: int = 0


@dataclass(frozen=True)
class StemOutput:
    """Output of the structure model while only its stem is trained (``stem.stem_only_fraction``).

    initial_frames    ([b, n, 3, 3], [b, n, 3] Å) frames along the predicted chain
    secondary_logits  [b, n, 3], or None if the head is disabled
    """

    initial_frames: tuple[Tensor, Tensor]
    secondary_logits: Tensor | None


@dataclass(frozen=True)
class Prediction:
    """One predicted chain or complex as numpy arrays, without padding.

    atom37    float32 [n, 37, 3] Å
    atom_mask bool [n, 37], True = the residue has the atom and it was placed
    plddt     float32 [n], 0–100
    distances float32 [n, n] Å, expected Cβ–Cβ distance of the distogram
    contacts  float32 [n, n], probability that the Cβ–Cβ distance is below 8 Å
    secondary float32 [n, 3], probabilities of helix, strand and loop, or None if the head is disabled
    pae       float32 [n, n] Å, predicted aligned error: of the position of residue j (column) in the frame of residue i
              (row); None from models that do not estimate it
    ptm       predicted TM-score, 0–1, or None like pae
    chain_ids chains of a complex; None for a single chain
    iptm      predicted TM-score of interfaces, 0–1; None for single chains, and like pae
    recycling recycling passes before the last one; None from models without recycling
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
    pae: np.ndarray | None = None
    ptm: float | None = None
    chain_ids: ChainIds | None = None
    iptm: float | None = None
    recycling: int | None = None
