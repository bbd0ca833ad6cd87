"""``patch(model)``: replacement of the known modules of a model by versions that run on the kernels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from ds4sci.integrations import (
    alphafold3,
    attention_pair_bias,
    esmfold,
    esmfold2,
    openfold,
    openfold_single_query,
    pair_weighted_averaging,
)
from ds4sci.integrations.replacement import CallCounts, FallbackMonitor, PatchedMethod, Replacement
from ds4sci.integrations.verification import verify
from ds4sci.kernels import KERNELS

FAMILIES: dict[str, tuple[Replacement, ...]] = {
    "ESMFold (transformers)": esmfold.REPLACEMENTS,
    "ESMFold2 (transformers)": esmfold2.REPLACEMENTS,
    "OpenFold-style": (*openfold.REPLACEMENTS, *openfold_single_query.REPLACEMENTS),
    "AlphaFold 3-style (Boltz, OpenFold3, Protenix)": (
        *alphafold3.REPLACEMENTS,
        *pair_weighted_averaging.REPLACEMENTS,
        *attention_pair_bias.REPLACEMENTS,
    ),
}
"""Supported modules. A match by name precedes a match by attributes: ESMFold's modules have OpenFold's attributes."""

SIMILAR_NAME = re.compile("Attention|Triang|OuterProduct|Transition|PairWeighted")
"""Class names that suggest a supported module. The report lists such classes if they are not supported."""

UNRECOGNIZED = "not a supported module type"


@dataclass(frozen=True)
class PatchReport:
    """What ``patch`` did, and how the model's calls ran since. Print it again after the first step.

    A copy of the model has its own counts.

    model         class of the model
    replaced      class of module → number of modules, and their kernels
    skipped       (class of module, reason) → number of modules
    unrecognized  class of module with a similar name that is not supported → number of modules
    modules       path of a module in the model → its class and its ``CallCounts``
    """

    model: str
    replaced: dict[str, tuple[int, tuple[str, ...]]]
    skipped: dict[tuple[str, str], int]
    unrecognized: dict[str, int] = field(default_factory=dict)
    modules: dict[str, tuple[str, CallCounts]] = field(default_factory=dict)

    @property
    def calls(self) -> dict[str, CallCounts]:
        """Class of module → the calls of all its modules together."""
        total = {name: CallCounts() for name in self.replaced}
        for name, counts in self.modules.values():
            total[name].on_kernels += counts.on_kernels
            total[name].fallbacks += counts.fallbacks
        return total

    def __str__(self) -> str:
        number = sum(count for count, _ in self.replaced.values())
        lines = [f"ds4sci: {number} modules of {self.model} are patched"]
        name_width = max(len(name) for name in self.replaced)
        kernel_width = max(len(", ".join(kernels)) for _, kernels in self.replaced.values())
        calls = self.calls
        lines += [
            f"  {name:{name_width}}  {count:4}  {', '.join(kernels):{kernel_width}}  {calls[name]}"
            for name, (count, kernels) in self.replaced.items()
        ]
        lines += [f"  skipped: {count} {name}: {reason}" for (name, reason), count in self.skipped.items()]
        lines += [f"  skipped: {count} {name}: {UNRECOGNIZED}" for name, count in self.unrecognized.items()]
        return "\n".join(lines)


def patch(model: nn.Module, *, implementation: str | None = None, verbose: bool = True) -> PatchReport:
    """Run every supported module of ``model`` on ds4sci's kernels, with the same results.

    implementation  name of the kernels' implementation; None takes the first one that supports the call
    verbose         print the report

    Weights, their names, classes and hooks are unchanged. Each module gets an attribute in place of its method, which
    copies and pickles of the module keep. A call that the kernels do not support runs the original method and warns
    with the reason. The returned report counts both, so printed after a step it shows what ran. Before the first
    module of a kind is replaced, the module and its replacement run the same small call with random weights; if the
    results differ, the module is skipped. ``unpatch`` undoes everything; patching again changes the implementation.

    Supported by name: ESMFold and ESMFold2 of transformers, Boltz' triangle multiplication. Supported by attributes:
    modules like those of OpenFold, OpenFold3, Protenix and Boltz. The report lists modules with a similar class name
    that are not supported.

    Patch before ``torch.compile``, DistributedDataParallel or DeepSpeed wrap the model. ``nn.DataParallel`` is not
    supported, because its replicas share the attributes of the original module.

    Raises ValueError if no module can be replaced, or if a kernel has no such implementation; the model is then
    unchanged.
    """
    skipped: Counter[tuple[str, str]] = Counter()
    chosen: list[tuple[str, nn.Module, Replacement]] = []
    skipped_modules: list[nn.Module] = []
    verdicts: dict[tuple[object, ...], str | None] = {}
    for path, module in model.named_modules():
        replacement = find_replacement(module)
        if replacement is None:
            continue
        reason = replacement.why_not(module)
        if reason is None:
            key = (replacement.class_name, *_configuration(module))
            if key not in verdicts:
                verdicts[key] = verify(replacement, module)
            reason = verdicts[key]
        if reason is None:
            chosen.append((path, module, replacement))
        else:
            skipped_modules.append(module)
            skipped[type(module).__name__, reason] += 1
    if not chosen:
        similar = {(name, UNRECOGNIZED): count for name, count in _unrecognized(model, skipped_modules).items()}
        reasons = "; ".join(f"{count} {name}: {reason}" for (name, reason), count in {**skipped, **similar}.items())
        why = f" ({reasons})" if reasons else ""
        raise ValueError(f"{type(model).__name__} has no module to patch{why}. {supported_modules()}")
    if implementation is not None:
        for kernel in {kernel for *_, replacement in chosen for kernel in replacement.kernels}:
            KERNELS[kernel].get_implementation(implementation)
    replaced: dict[str, tuple[int, tuple[str, ...]]] = {}
    modules: dict[str, tuple[str, CallCounts]] = {}
    monitor = FallbackMonitor()
    for path, module, replacement in chosen:
        method = module.__dict__[replacement.method] = PatchedMethod(module, replacement, implementation, monitor)
        name = type(module).__name__
        replaced[name] = (replaced.get(name, (0, ()))[0] + 1, replacement.kernels)
        modules[path] = name, method.counts
    for module in skipped_modules:  # patched earlier, and changed since then
        _restore(module)
    unrecognized = _unrecognized(model, [*skipped_modules, *(module for _, module, _ in chosen)])
    report = PatchReport(type(model).__name__, replaced, dict(skipped), unrecognized, modules)
    if verbose:
        print(report)
    return report


def unpatch(model: nn.Module) -> None:
    """Restore the original methods of every module of ``model``."""
    for module in model.modules():
        _restore(module)


def _restore(module: nn.Module) -> None:
    for name in [name for name, value in module.__dict__.items() if isinstance(value, PatchedMethod)]:
        del module.__dict__[name]


def find_replacement(module: nn.Module) -> Replacement | None:
    """The replacement for the class of ``module``, or None if it is not supported."""
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
    replacements = [replacement for family in FAMILIES.values() for replacement in family]
    for replacement in replacements:
        if replacement.matches is None and replacement.class_name in names:
            return replacement
    return next((one for one in replacements if one.matches is not None and one.matches(module)), None)


def _unrecognized(model: nn.Module, supported: Iterable[nn.Module]) -> dict[str, int]:
    """Classes with a ``SIMILAR_NAME`` that neither are, nor are part of, nor contain a supported module."""
    found: Counter[str] = Counter()
    seen = {id(module) for module in supported}
    covered = set(seen)

    def visit(module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        if SIMILAR_NAME.search(type(module).__name__) and not any(id(part) in covered for part in module.modules()):
            found[type(module).__name__] += 1
            return
        for child in module.children():
            visit(child)

    visit(model)
    return dict(found)


def supported_modules() -> str:
    """The families and their modules, as text for messages."""
    return "Supported are " + "; ".join(
        f"{family}: {', '.join(replacement.name for replacement in members)}" for family, members in FAMILIES.items()
    )


def _configuration(module: nn.Module) -> list[tuple[object, ...]]:
    """Classes, shapes and plain settings of a module and its submodules. Modules that share it are verified once."""
    return [
        (
            name,
            type(part),
            *(tuple(parameter.shape) for parameter in part.parameters(recurse=False)),
            *((key, value) for key, value in part.__dict__.items() if isinstance(value, bool | int | float | str)),
        )
        for name, part in module.named_modules()
    ]
