"""Fragments of parameters whose fp32 weights and optimizer state a rank holds, on every ZeRO stage.

Without ZeRO a rank holds whole parameters. ZeRO 1 and 2 divide a flat buffer of all parameters, so that a rank holds
consecutive elements of some of them; ZeRO 3 divides each parameter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ds4sci.train.ema import is_sharded
from ds4sci.train.layerwise_optimizers import LayerwiseOptimizer, Segment

if TYPE_CHECKING:
    from ds4sci.train.engine import Engine

WEIGHT = "weight"
"""Kind of the fp32 weights; other kinds are the names of the optimizer's moments, such as ``exp_avg``."""

SCALARS = ("step", "mu_product")
"""Names of optimizer state that is one number per parameter."""

FAMILIES = (
    ("Adam", "AdamW", "FusedAdam", "DeepSpeedCPUAdam"),
    ("Lion", "FusedLion", "DeepSpeedCPULion"),
    ("Adagrad", "DeepSpeedCPUAdagrad"),
    ("SGD",), ("RMSprop",), ("Adadelta",), ("Adamax",), ("NAdam",), ("RAdam",), ("Rprop",), ("LAMB",), ("LARS",),
    ("MuonWithAuxAdam",),
)  # fmt: skip
"""Optimizers whose state is per element or one number; those of a tuple read each other's state."""

WRAPPERS = (
    "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3", "BF16_Optimizer", "FP16_Optimizer",
    "FP16_UnfusedOptimizer",
)  # fmt: skip
"""Classes of DeepSpeed around the optimizer whose fragments ``fragments`` finds."""

PARTITIONING = WRAPPERS[:3]
"""Those whose ranks hold different elements."""


@dataclass(frozen=True, eq=False)
class Fragment:
    """Consecutive elements of one parameter that this rank's optimizer updates.

    name         name of the parameter
    start, stop  range of elements of the flattened parameter
    master       tensor in fp32 that the optimizer updates: the parameter itself, or a buffer of many parameters
    offset       first element in the flattened ``master``
    states       state of the optimizer: tensor → name → value
    whole        for Muon with ZeRO 1 and 2, whose momentum holds whole parameters: (first element of this parameter in
                 the momentum, its number of elements, size of the momentum)
    """

    name: str
    start: int
    stop: int
    master: Tensor
    offset: int
    states: Any
    whole: tuple[int, int, int] | None = None

    @property
    def moment_shape(self) -> torch.Size:
        """Shape of the tensors in ``state``."""
        return self.master.shape if self.whole is None else torch.Size([self.whole[2]])

    @property
    def state(self) -> dict[str, Any]:
        """State of ``master``; empty before the first step."""
        state: dict[str, Any] = self.states.get(self.master, {})  # get: a defaultdict stays as it is
        return state

    def tensors(self) -> dict[str, Tensor]:
        """Return kind → tensor that holds the elements of this fragment from ``offset``."""
        moments = {k: v for k, v in self.state.items() if k not in SCALARS and v is not None}
        wrong = [k for k, v in moments.items() if not (isinstance(v, Tensor) and v.shape == self.moment_shape)]
        if wrong:
            raise RuntimeError(f"{self.name}: the optimizer's {', '.join(wrong)} is not one number per weight")
        return {WEIGHT: self.master} | moments

    def place(self, tensor: Tensor) -> tuple[Tensor, int]:
        """Return what ``tensor``, one of ``tensors()``, holds of this parameter, as a view, and its first element."""
        tensor = tensor.detach()
        if self.whole is not None and tensor is not self.master and tensor.shape == self.moment_shape:
            return tensor.narrow(0, *self.whole[:2]), 0
        if tensor.numel() == self.stop - self.start:
            return tensor, self.start
        return tensor.view(-1).narrow(0, self.offset, self.stop - self.start), self.start

    def scalars(self) -> dict[str, float]:
        """Return the state that is one number for all elements, such as the step count."""
        return {k: float(self.state[k]) for k in SCALARS if k in self.state}


def base_optimizer(engine: Engine) -> Any:
    """Return the optimizer inside DeepSpeed's wrapper."""
    wrapper = engine.deepspeed.optimizer
    return wrapper if isinstance(wrapper, torch.optim.Optimizer) else wrapper.optimizer


def check_optimizer(engine: Engine) -> None:
    """Raise ValueError if checkpoints cannot hold the state of the optimizer."""
    wrapper, optimizer = engine.deepspeed.optimizer, base_optimizer(engine)
    kind = type(optimizer).__name__
    known = [name for family in FAMILIES for name in family]
    if kind not in known:
        raise ValueError(
            f"{engine.json_file}: optimizer.type: the state of {kind} cannot be divided among ranks, so that no "
            f"checkpoint could be saved; use one of {', '.join(known)}"
        )
    if wrapper is not optimizer and type(wrapper).__name__ not in WRAPPERS:
        raise ValueError(
            f"{engine.json_file}: checkpoints cannot hold the state of {type(wrapper).__name__}; remove zenflow, "
            "super_offload and similar keys of zero_optimization"
        )


def fragments(engine: Engine) -> Iterator[Fragment]:
    """Yield what this rank's optimizer updates. Each trainable parameter has at most one fragment on a rank."""
    wrapper: Any = engine.deepspeed.optimizer
    states = base_optimizer(engine).state
    unsharded = _unsharded_masters(wrapper)
    for name, parameter in engine.named_parameters():
        p: Any = parameter
        if not p.requires_grad or _numel(p) == 0:
            continue
        if is_sharded(p):
            group, offset, size = wrapper.grad_position[wrapper.get_param_id(p)]
            start = size * dist.get_rank(p.ds_process_group)
            if start < p.ds_numel:  # the last shards are padded
                held = _states_of_sub_group(wrapper, group)
                stop = min(start + size, p.ds_numel)
                yield Fragment(name, start, stop, wrapper.fp32_partitioned_groups_flat[group], offset, held)
        elif hasattr(p, "_hp_mapping"):
            if (mapping := p._hp_mapping) is not None:
                flat = getattr(wrapper, "single_partition_of_fp32_groups", None) or wrapper.fp32_groups_flat_partition
                start, size = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
                master, offset = flat[mapping.param_group_index], mapping.hp_fragment_address.start
                whole = _place_in_whole(wrapper, mapping.param_group_index, p)
                yield Fragment(name, start, start + size, master, offset, states, whole)
        else:
            master, offset = unsharded.get(p, (p, 0))
            yield Fragment(name, 0, p.numel(), master, offset, states)


def divide_layerwise(optimizer: LayerwiseOptimizer, engine: Engine) -> None:
    """Tell ``optimizer`` which elements of which parameters this rank has, unless it has whole ones."""
    wrapper: Any = engine.deepspeed.optimizer
    if type(wrapper).__name__ not in PARTITIONING:
        return
    trainable: dict[str, Any] = {name: p for name, p in engine.named_parameters() if p.requires_grad}
    numbers = {name: number for number, name in enumerate(trainable)}
    segments: dict[Tensor, list[Segment]] = defaultdict(list)
    for one in fragments(engine):
        shape = getattr(trainable[one.name], "ds_shape", trainable[one.name].shape)
        segments[one.master].append(Segment(numbers[one.name], one.offset, one.stop - one.start, len(shape)))
    process_groups = [p.ds_process_group for p in trainable.values() if is_sharded(p)]
    optimizer.divide(segments, len(numbers), process_groups[0] if process_groups else wrapper.dp_process_group)


def create_state(
    fragment: Fragment, optimizer: Any, moments: Mapping[str, torch.dtype], scalars: Mapping[str, float]
) -> None:
    """Create the state of the master tensor of ``fragment``: moments of zeros, and the given numbers.

    moments  name → dtype
    scalars  name → value
    """
    master, shape = fragment.master, fragment.moment_shape
    state = fragment.states[master]
    for name, dtype in moments.items():
        if isinstance(state.get(name), Tensor) and state[name].shape == shape:
            state[name].zero_()
        else:
            state[name] = torch.zeros(shape, dtype=dtype, device=master.device)
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    stepped = getattr(optimizer, "aux_optimizer", None) or optimizer  # Muon lets an Adam step the other parameters
    for name, value in scalars.items():
        if type(stepped).__module__.startswith("torch.optim"):
            device = master.device if on_device else torch.device("cpu")
            state[name] = torch.tensor(value, dtype=torch.float32, device=device)
        else:  # DeepSpeed's kernels take whole numbers
            state[name] = int(value)


def _numel(parameter: Any) -> int:
    return int(parameter.ds_numel) if is_sharded(parameter) else int(parameter.numel())


def _states_of_sub_group(wrapper: Any, group: int) -> Any:
    """Return the state of the optimizer that updates a sub-group of ZeRO 3: with partial offload there are two."""
    if wrapper.offload_optimizer and wrapper.subgroup_to_device[group] != "cpu":
        return wrapper.backup_optimizer.state
    return wrapper.optimizer.state


def _place_in_whole(wrapper: Any, group: int, parameter: Tensor) -> tuple[int, int, int] | None:
    """Return ``Fragment.whole``. ZeRO 1 and 2 concatenate the momentum of every parameter with a part on this rank."""
    if not (wrapper.param_groups[group].get("use_muon") and hasattr(wrapper, "params_in_partition")):
        return None
    found, end = None, 0
    for other in wrapper.params_in_partition[group]:
        if other is parameter:
            found = end
        end += other.numel()
    return None if found is None else (found, parameter.numel(), end)


def _unsharded_masters(wrapper: Any) -> dict[Tensor, tuple[Tensor, int]]:
    """Return parameter → (master, offset) of the 16-bit optimizers without ZeRO."""
    found: dict[Tensor, tuple[Tensor, int]] = {}
    groups = getattr(wrapper, "fp16_groups", ())
    for parameters, masters in zip(groups, getattr(wrapper, "fp32_groups", ()), strict=False):
        found |= {p: (master, 0) for p, master in zip(parameters, masters, strict=True)}
    for parameters, flat in zip(groups, getattr(wrapper, "fp32_groups_flat", ()), strict=False):
        offset = 0
        for p in parameters:
            found[p] = (flat, offset)
            offset += p.numel()
    return found
