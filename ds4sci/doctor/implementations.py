"""Check of the kernels: the implementation that runs here for each, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator

from ds4sci.doctor.finding import Finding, installed


def kernels() -> Iterator[Finding]:
    """Implementation that runs for each kernel on this machine, and the reasons why the others cannot run."""
    if installed("torch") is None:
        return
    import torch

    from ds4sci.kernels import KERNELS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for kernel in KERNELS.values():
        if not kernel.cases:
            names = ", ".join(i.name for i in kernel.implementations)
            yield Finding("kernels", kernel.name, "ok", f"{names} (has no test case to check with)")
            continue
        case = kernel.cases[0]
        for dtype in (torch.float32, torch.bfloat16):
            inputs = case.make(torch.Generator().manual_seed(0), dtype, device)
            chosen, refusals = None, []
            for implementation in kernel.implementations:
                reason = implementation.why_not(**inputs)
                if reason is not None:
                    refusals.append(f"{implementation.name}: {reason}")
                elif chosen is None:
                    chosen = implementation.name
            label = f"{kernel.name} · {str(dtype).removeprefix('torch.')} on {device.type}"
            detail = "; ".join([f"{chosen} runs" if chosen else "no implementation runs", *refusals])
            yield Finding("kernels", label, "ok" if chosen else "problem", detail)
