"""Other people's models by our kernels, in one line: ``patch(model)``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from ds4sci.integrations import alphafold3, esmfold, esmfold2, openfold
from ds4sci.integrations.replacement import Calls, Forward, Replacement, Run
from ds4sci.integrations.verification import rehearse
from ds4sci.kernels import KERNELS

FAMILIES: dict[str, tuple[Replacement, ...]] = {
    "ESMFold (transformers)": esmfold.REPLACEMENTS,
    "ESMFold2 (transformers)": esmfold2.REPLACEMENTS,
    "OpenFold-style": openfold.REPLACEMENTS,
    "AlphaFold 3-style (Boltz, OpenFold3, Protenix)": alphafold3.REPLACEMENTS,
}
"""What is known. By its name before by its attributes: ESMFold's modules look like OpenFold's."""

LOOKALIKE = re.compile("Attention|Triang|OuterProduct|Transition|PairWeighted")
"""Names of modules that a reader of the report would take for known ones."""


@dataclass(frozen=True)
class Patched:
    """What ``patch`` did, and what the model's calls have run since: print it again after the first step. A copy of the
    model has counts of its own.

    model     class of the model
    replaced  class of module → how many, and the kernels they run on
    left      (class of module, why it was left alone) → how many
    unknown   class of module that has the name of a known one and is none → how many
    modules   path of a module in the model → its class, and its ``Calls`` so far: served, or its own method's and why
    """

    model: str
    replaced: dict[str, tuple[int, tuple[str, ...]]]
    left: dict[tuple[str, str], int]
    unknown: dict[str, int] = field(default_factory=dict)
    modules: dict[str, tuple[str, Calls]] = field(default_factory=dict)

    @property
    def calls(self) -> dict[str, Calls]:
        """Class of module → the calls of all its modules together."""
        total = {name: Calls() for name in self.replaced}
        for name, own in self.modules.values():
            total[name].served += own.served
            total[name].own += own.own
        return total

    def __str__(self) -> str:
        number = sum(count for count, _ in self.replaced.values())
        lines = [f"ds4sci: {number} modules of {self.model} are patched"]
        width = max(len(name) for name in self.replaced)
        by_width = max(len(", ".join(by)) for _, by in self.replaced.values())
        calls = self.calls
        lines += [
            f"  {name:{width}}  {count:4}  {', '.join(by):{by_width}}  {calls[name]}"
            for name, (count, by) in self.replaced.items()
        ]
        lines += [f"  left alone: {count} {name}: {why}" for (name, why), count in self.left.items()]
        lines += [f"  left alone: {count} {name}: not a kind that is known" for name, count in self.unknown.items()]
        return "\n".join(lines)


def patch(model: nn.Module, *, implementation: str | None = None, verbose: bool = True) -> Patched:
    """Let every module of ``model`` that ds4sci knows run on its kernels, with the same numbers.

    Weights, their names, classes and hooks stay. A module gets an attribute in place of its method, which its copies
    and pickles get too. A call that the kernels do not serve runs the module's own method, with a warning that says
    why; the report that is returned counts both, so that printed after a step it says what really ran. Before the first
    of its kind is replaced, a module and its replacement make the same small call with random weights; where they
    differ it is left alone. ``unpatch`` undoes everything; to patch again changes the implementation.

    implementation  of the kernels, by name; None takes the first that can run, call by call
    verbose         print the report

    Known are ESMFold and ESMFold2 of transformers and Boltz' triangle multiplication, by name, and modules that look
    like OpenFold's, OpenFold3's, Protenix' and Boltz', by their attributes. Modules whose class has the name of such a
    one and that are not known are named in the report.
    Patch before ``torch.compile``, DistributedDataParallel or DeepSpeed wrap the model. ``nn.DataParallel``, whose
    replicas share their original's attributes, is not supported.

    Raises ValueError where nothing is known or nothing could be replaced, and for an implementation that a kernel has
    not; then nothing is changed.
    """
    left: Counter[tuple[str, str]] = Counter()
    chosen: list[tuple[str, nn.Module, Replacement]] = []
    refused: list[nn.Module] = []
    verdicts: dict[tuple[object, ...], str | None] = {}
    for path, module in model.named_modules():
        replacement = find(module)
        if replacement is None:
            continue
        reason = replacement.why_not(module)
        if reason is None:
            key = (replacement.kind, *_makeup(module))
            if key not in verdicts:
                verdicts[key] = rehearse(replacement, module)
            reason = verdicts[key]
        if reason is None:
            chosen.append((path, module, replacement))
        else:
            refused.append(module)
            left[type(module).__name__, reason] += 1
    if not chosen:
        alike = {(name, "not a kind that is known"): count for name, count in _unknown(model, refused).items()}
        reasons = "; ".join(f"{count} {name}: {reason}" for (name, reason), count in {**left, **alike}.items())
        why = f" ({reasons})" if reasons else ""
        raise ValueError(f"{type(model).__name__} has no module to patch{why}. {known()}")
    if implementation is not None:
        for kernel in {kernel for *_, replacement in chosen for kernel in replacement.kernels}:
            KERNELS[kernel].get_implementation(implementation)
    replaced: dict[str, tuple[int, tuple[str, ...]]] = {}
    modules: dict[str, tuple[str, Calls]] = {}
    run = Run()
    for path, module, replacement in chosen:
        forward = module.__dict__[replacement.method] = Forward(module, replacement, implementation, run)
        name = type(module).__name__
        replaced[name] = (replaced.get(name, (0, ()))[0] + 1, replacement.kernels)
        modules[path] = name, forward.calls
    for module in refused:  # patched once, and since then changed
        _restore(module)
    unknown = _unknown(model, [*refused, *(module for _, module, _ in chosen)])
    report = Patched(type(model).__name__, replaced, dict(left), unknown, modules)
    if verbose:
        print(report)
    return report


def unpatch(model: nn.Module) -> None:
    """Give every module of ``model`` its own methods back."""
    for module in model.modules():
        _restore(module)


def _restore(module: nn.Module) -> None:
    for name in [name for name, value in module.__dict__.items() if isinstance(value, Forward)]:
        del module.__dict__[name]


def find(module: nn.Module) -> Replacement | None:
    """What is known of a module's kind."""
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
    everything = [replacement for family in FAMILIES.values() for replacement in family]
    for replacement in everything:
        if replacement.looks is None and replacement.kind in names:
            return replacement
    return next((one for one in everything if one.looks is not None and one.looks(module)), None)


def _unknown(model: nn.Module, known: Iterable[nn.Module]) -> dict[str, int]:
    """Classes that have the name of a known one, neither known, nor part of a known one, nor made of such."""
    found: Counter[str] = Counter()
    seen = {id(module) for module in known}
    covered = set(seen)

    def visit(module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        if LOOKALIKE.search(type(module).__name__) and not any(id(part) in covered for part in module.modules()):
            found[type(module).__name__] += 1
            return
        for child in module.children():
            visit(child)

    visit(model)
    return dict(found)


def known() -> str:
    """The families and their modules, in a sentence each."""
    return "Known are " + "; ".join(
        f"{family}: {', '.join(replacement.name for replacement in members)}" for family, members in FAMILIES.items()
    )


def _makeup(module: nn.Module) -> list[tuple[object, ...]]:
    """Classes, shapes and plain settings of a module and its parts: modules alike in them need one rehearsal."""
    return [
        (
            name,
            type(part),
            *(tuple(parameter.shape) for parameter in part.parameters(recurse=False)),
            *((key, value) for key, value in part.__dict__.items() if isinstance(value, bool | int | float | str)),
        )
        for name, part in module.named_modules()
    ]
