"""DeepSpeed's engine as the training loop uses it. The only module that calls ``deepspeed.initialize``.

The engine gets the path of the user's JSON, never a modified copy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ds4sci.config import deepspeed_json
from ds4sci.tasks import Task
from ds4sci.train import extension_builds
from ds4sci.train.distributed import DistributedContext, create_context
from ds4sci.train.gradient_noise import GradientNoise
from ds4sci.train.gradient_scale import gradient_scale
from ds4sci.train.layerwise_optimizers import OPTIMIZERS, LayerwiseOptimizer
from ds4sci.train.optimizer_slices import base_optimizer, divide_layerwise

if TYPE_CHECKING:
    from deepspeed.runtime.engine import DeepSpeedEngine


def init_distributed(config: dict[str, Any], sequence: int = 1, pipeline: int = 1) -> DistributedContext:
    """Build the extensions that ``config`` requires, connect the ranks and create their context.

    sequence  ranks that share each row
    pipeline  stages of the model
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    extension_builds.build_required(config, verbose=os.environ["RANK"] == "0")
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        device = torch.device("cpu")
    else:
        local_rank = int(os.environ["LOCAL_RANK"])
        accelerator.set_device(local_rank)
        device = torch.device(accelerator.device_name(local_rank))
    with extension_builds.suppress_stdout():
        deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    return create_context(device, sequence, pipeline)


def mark_leaf_modules(model: nn.Module) -> None:
    """Mark the modules that ZeRO-3 must gather together with their children.

    These modules (``ds4sci.nn``) set ``reads_parameters_of_children``. ZeRO-3 gathers the parameters of a module when
    its ``forward`` is called, but a child whose weights go to a fused kernel is never called. Without ZeRO-3 the mark
    has no effect.
    """
    from deepspeed.utils import set_z3_leaf_modules

    kinds = {type(module) for module in model.modules() if getattr(module, "reads_parameters_of_children", False)}
    if kinds:
        set_z3_leaf_modules(model, sorted(kinds, key=lambda kind: kind.__name__))


@dataclass(frozen=True)
class StepResult:
    """Result of a step on one rank.

    losses   loss and terms of each micro-batch; empty on pipeline stages before the last
    finite   whether the loss of each micro-batch was finite; empty on the same stages
    applied  whether the weights were updated
    """

    losses: list[dict[str, float]]
    finite: list[bool]
    applied: bool


class Engine:
    """DeepSpeed's engine around ``model``; a non-finite number on any rank makes every rank skip the step.

    json_file   path of the DeepSpeed JSON
    context     the distributed context
    batch       (train_batch_size, micro batch per rank, accumulation steps), as DeepSpeed resolved them
    zero_stage  0–3
    grad_norm   global gradient norm of the last step, before clipping; None if DeepSpeed does not report one
    """

    def __init__(self, model: nn.Module, json_file: Path, context: DistributedContext) -> None:
        """Raises ValueError with file and reason if DeepSpeed rejects the JSON, or ZeRO-3 cannot train the model."""
        import deepspeed

        config = deepspeed_json.read(json_file)
        deepspeed_json.batch_sizes(config, context.sequence.data_size, json_file)
        reason = getattr(model, "why_not_zero3", None)
        if deepspeed_json.zero_stage(config) == 3 and reason:
            raise ValueError(f"{json_file}: ZeRO stage 3 cannot train {reason}")
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._parameters = parameters  # listing them costs milliseconds per step
        mark_leaf_modules(model)
        try:
            own_optimizer = _own_optimizer(config, parameters)
        except ValueError as error:
            raise ValueError(f"{json_file}: optimizer.params: {error}") from error
        try:
            with extension_builds.suppress_stdout(), _without_initial_step():
                engine, _, _, _ = deepspeed.initialize(
                    model=self._module_to_wrap(model, context), model_parameters=parameters, config=str(json_file),
                    optimizer=own_optimizer, dist_init_required=False, mpu=context.sequence.mpu,
                )  # fmt: skip
        except (AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"{json_file}: DeepSpeed rejects this configuration: {reason}") from error
        self.deepspeed: DeepSpeedEngine = engine
        self._factor = 1.0 / gradient_scale(config, context)
        self.json_file, self.context = json_file, context
        self.batch = (  # DeepSpeed returns floats with sequence parallelism
            int(engine.train_batch_size()),
            int(engine.train_micro_batch_size_per_gpu()),
            int(engine.gradient_accumulation_steps()),
        )
        self.zero_stage = int(engine.zero_optimization_stage())
        if isinstance(optimizer := base_optimizer(self), LayerwiseOptimizer):
            divide_layerwise(optimizer, self)
        # Every optimizer wrapper of DeepSpeed (ZeRO 1–3, bf16, fp16) skips a step whose global gradient norm is not
        # finite. The bare torch optimizer of stage 0 in fp32 does not, so that step() checks the norm itself.
        self._bare = isinstance(engine.optimizer, torch.optim.Optimizer)
        self.grad_norm: float | None = None
        self.noise: GradientNoise | None = None

    def _module_to_wrap(self, model: nn.Module, context: DistributedContext) -> nn.Module:
        """The module that DeepSpeed gets."""
        return model

    @property
    def module(self) -> nn.Module:
        """The model inside the engine."""
        return self.deepspeed.module

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield this rank's parameters with their names in the task's model, each tied parameter once.

        Checkpoints use these names on every layout.
        """
        return self.module.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield this rank's persistent buffers with their names in the task's model."""
        persistent = self.module.state_dict(keep_vars=True).keys()
        return ((name, buffer) for name, buffer in self.module.named_buffers() if name in persistent)

    @property
    def uses_dynamic_loss_scale(self) -> bool:
        """Whether a skipped step may be part of the search for the fp16 loss scale."""
        return bool(self.deepspeed.fp16_enabled() and self.deepspeed.dynamic_loss_scale())

    def learning_rate(self) -> float:
        """Return the learning rate of the first parameter group for the next step."""
        return float(self.deepspeed.get_lr()[0])

    def measure_noise(self) -> None:
        """Measure the gradient noise scale from the next step on.

        Raises ValueError if the micro-batches of a step do not have gradients of their own, or there is only one.
        """
        group, (_, _, accumulation) = self.context.sequence, self.batch
        reason = ""
        if group.size > 1 or self.context.pipeline.size > 1:
            reason = "with parallel.sequence or parallel.pipeline no rank has the gradient of a micro-batch"
        elif self.deepspeed.fp16_enabled():
            reason = "with fp16 the gradients of a micro-batch carry the loss scale; use bf16"
        elif group.data_size * accumulation < 2:
            reason = (
                "a step has one micro-batch, and the noise is seen in the difference of several; set "
                "gradient_accumulation_steps to 2 or more, or use more ranks"
            )
        if reason:
            raise ValueError(f"{self.json_file}: train.gradient_noise = true: {reason}")
        self.noise = GradientNoise(self._parameters, self._factor, self.context.device)

    def run_step(
        self, task: Task, parts: Sequence[tuple[Any, float]], seed_micro_batch: Callable[..., None]
    ) -> StepResult:
        """Forward and backward of a step's micro-batches, and the optimizer step.

        parts             (batch on the host, its share of the loss of the step) for each micro-batch of this rank
        seed_micro_batch  called with the index in ``parts`` before the forward pass of that micro-batch; a pipeline
                          stage calls it with (index, pass) before a pass without gradient
        """
        losses, finite, applied = [], [], False
        for number, (batch, share) in enumerate(parts):
            seed_micro_batch(number)
            on_device = batch.to(self.context.device)
            loss, terms = task.loss(self.deepspeed(on_device), on_device)
            losses.append(to_floats(loss, terms))
            finite.append(self.backward(loss, share))
            if self.noise is not None:
                self.noise.end_micro_batch(share)
            applied = self.step()
        return StepResult(losses, finite, applied)

    def evaluate(self, task: Task, before_forward: Callable[[], None]) -> list[dict[str, Any]]:
        """Return the rows of ``task.evaluate`` on this rank's part of the held-out data.

        before_forward  called before every forward pass, equally often on every rank
        """
        hook = self.module.register_forward_pre_hook(lambda module, arguments: before_forward(), prepend=True)
        try:
            return task.evaluate(
                self.deepspeed, rank=self.context.sequence.data_rank, world_size=self.context.sequence.data_size,
                device=self.context.device,
            )  # fmt: skip
        finally:
            hook.remove()

    def backward(self, loss: Tensor, share: float) -> bool:
        """Accumulate the gradient of one micro-batch. Returns whether its loss was finite.

        share  weight of this micro-batch in the loss of the step, which is Σ share · loss over its micro-batches on all
               ranks; the optimizer gets the gradient of that sum

        A non-finite loss is multiplied by NaN, so that all gradients become NaN. The reduction spreads them to every
        rank, and all optimizers skip the step, as they do after an overflow in fp16.
        """
        finite = bool(torch.isfinite(loss.detach()))
        factor = share * self._factor if finite else float("nan")
        self.deepspeed.backward(loss * factor, scale_wrt_gas=False)
        return finite

    def step(self) -> bool:
        """End a micro-batch and, at the end of the accumulation, update the weights. Returns whether they were updated.

        If a gradient is not finite, weights, optimizer state and schedule stay unchanged.
        """
        engine = self.deepspeed
        boundary = engine.is_gradient_accumulation_boundary()
        if boundary and self._bare:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            self.grad_norm = float(norm)
            with contextlib.nullcontext() if torch.isfinite(norm) else _skip_step(engine.optimizer):
                engine.step()
        else:
            engine.step()
        if boundary and not self._bare:
            norm = engine.get_global_grad_norm()
            self.grad_norm = None if norm is None else float(norm)
        return boundary and bool(engine.was_step_applied())

    def log(self, values: dict[str, float], samples: int) -> None:
        """Write to the monitors that the JSON enables: wandb, tensorboard, csv, comet."""
        monitor = self.deepspeed.monitor
        if monitor.enabled and self.context.is_main:
            monitor.write_events([(name, value, samples) for name, value in values.items()])


def _own_optimizer(config: dict[str, Any], parameters: list[nn.Parameter]) -> LayerwiseOptimizer | None:
    """The optimizer of the JSON if it is one of ``OPTIMIZERS``; DeepSpeed makes all others."""
    section = config["optimizer"]
    kind = OPTIMIZERS.get(str(section["type"]).lower())
    if kind is None:
        return None
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    if kind not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(kind)
    return kind(parameters, **(section.get("params") or {}))


def to_floats(loss: torch.Tensor, terms: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return loss and terms of a micro-batch as floats, with a single device-to-host copy."""
    stacked = torch.stack(
        [loss.detach().double().reshape(())] + [t.detach().double().reshape(()) for t in terms.values()]
    )
    return dict(zip(["loss", *terms], stacked.tolist(), strict=True))


@contextlib.contextmanager
def _without_initial_step() -> Iterator[None]:
    """Disable the initial step of DeepSpeed's 16-bit optimizers without ZeRO.

    At construction they step once on zero gradients to create the optimizer state. Adam's step count then begins at 1,
    and weight decay is applied once too often. The first training step creates the state as well.
    """
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    kinds = {kind: kind.initialize_optimizer_states for kind in (FP16_Optimizer, FP16_UnfusedOptimizer)}
    for kind in kinds:
        kind.initialize_optimizer_states = lambda self: None
    try:
        yield
    finally:
        for kind, own in kinds.items():
            kind.initialize_optimizer_states = own


@contextlib.contextmanager
def _skip_step(optimizer: Any) -> Iterator[None]:
    """Make a bare torch optimizer skip a step as DeepSpeed's wrappers do.

    The weights stay unchanged, and ``overflow`` tells the engine not to advance the schedule. The engine itself drops
    the gradients.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.zero_()  # the engine still clips them
    optimizer.step, optimizer.overflow = (lambda: None), True
    try:
        yield
    finally:
        del optimizer.step, optimizer.overflow


SUPPRESSED_WARNINGS = (
    "Setting accelerator to CPU",  # not a problem
    "Attempting to get learning rate from scheduler before it has started",  # caused by DeepSpeed's own schedules
    "[Rank 0] [deepspeed] OVERFLOW! Skipping step",  # the training loop reports the samples
    "MPU is not provided",  # expected when a universal checkpoint is loaded
    # ZeRO-3 gathers parameters by the tensors that modules return. The whole models, which return these types, need the
    # values of no parameter of their own in backward; tests compare their gradients on every stage
    "A module has unknown inputs or outputs type (<class 'ds4sci.types.",
)
"""Beginnings of DeepSpeed's warnings that do not concern the user."""


def silence_deepspeed() -> None:
    """Set DeepSpeed's logger to WARNING, and ignore warnings about deprecated calls that DeepSpeed makes.

    Called once by programs, not by library code. Other warnings are unaffected.
    """
    logger = logging.getLogger("DeepSpeed")
    logger.addFilter(lambda record: not record.getMessage().startswith(SUPPRESSED_WARNINGS))
    import deepspeed  # noqa: F401  (creates that logger, with the current stdout)

    logger.setLevel(logging.WARNING)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(deepspeed|torch\.distributed)\b.*")
