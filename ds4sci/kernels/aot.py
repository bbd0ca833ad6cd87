"""Ahead-of-time compilation of Triton kernels for GPUs that this machine does not have, and statistics of the binaries.

Requires no driver: Triton brings the assembler and disassembler. The arguments are those of a real launch (tensors may
be on the meta device), so the compiler knows alignment and strides of 1 as at launch. The results are static figures
(registers, spills, shared memory, instructions), not speeds.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

POINTER_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8", torch.int8: "*i8",
    torch.int32: "*i32", torch.int64: "*i64", torch.float64: "*fp64",
}  # fmt: skip
SHARED_MEMORY = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Maximum bytes of shared memory per block; for sm_80 those of sm_86, sm_89 and sm_120, which use its configs."""
TENSOR_MEMORY = 512
"""Columns of tensor memory per multiprocessor of sm_100."""
ARCHITECTURES = tuple(SHARED_MEMORY)
INSTRUCTION_GROUPS = {
    "HGMMA": r"[HIQ]GMMA", "HMMA": r"[HIQD]MMA", "tcgen05": r"UTC\w*MMA", "mfma": r"v_s?mfmac?_",
    "exp2": r"MUFU\.EX2|v_exp_f32", "local": r"LDL|STL|scratch_", "global load": r"LDG|UTMALDG|global_load|buffer_load",
    "async copy": r"LDGSTS", "global store": r"STG|global_store|buffer_store", "atomic": r"ATOMG|RED(G|\b)|\w+_atomic",
    "shared": r"LDS|STS|ds_",
}  # fmt: skip
"""Counted groups of instructions, and the patterns that their names begin with."""


@dataclass(frozen=True)
class KernelStats:
    """Static figures of a compiled kernel.

    spilled        bytes of local memory per thread, including vector registers of AMD moved to accumulation registers
    scalar_spills  scalar registers of AMD moved to lanes of vector registers: one instruction each, no memory
    tensor_memory  columns, on sm_100
    mix            instructions by group, counted in the binary
    """

    arch: str
    registers: int
    spilled: int
    shared: int
    instructions: int
    tensor_memory: int = 0
    scalar_spills: int = 0
    mix: dict[str, int] = field(default_factory=dict)

    def violations(self, *, matrix: str | None = None) -> list[str]:
        """Reasons not to ship the config. ``matrix``: the only allowed kind of matrix instruction, which is
        required."""
        found = []
        if self.spilled or self.mix.get("local"):
            found.append(f"spills {self.spilled} bytes, {self.mix.get('local', 0)} accesses to local memory")
        if self.shared > SHARED_MEMORY[self.arch]:
            found.append(f"{self.shared} bytes of shared memory, the limit is {SHARED_MEMORY[self.arch]}")
        if self.tensor_memory > TENSOR_MEMORY:
            found.append(f"{self.tensor_memory} columns of tensor memory, the limit is {TENSOR_MEMORY}")
        if self.mix.get("atomic"):
            found.append(f"{self.mix['atomic']} atomics")
        if matrix:
            found += [] if self.mix.get(matrix) else [f"no {matrix}"]
            others = {"HGMMA", "HMMA", "tcgen05", "mfma"} - {matrix}
            found += [f"{self.mix[other]} {other}" for other in sorted(others) if self.mix.get(other)]
        return found


def kernel_stats(
    function: Any, arguments: dict[str, Any], constants: dict[str, Any], arch: str, *, warps: int, stages: int
) -> KernelStats:
    """Statistics of ``compile_kernel`` with the same arguments."""
    found = compile_kernel(function, arguments, constants, arch, warps=warps, stages=stages)
    return _nvidia(found, arch) if arch.startswith("sm_") else _amd(found, arch)


def compile_kernel(
    function: Any, arguments: dict[str, Any], constants: dict[str, Any], arch: str, *, warps: int, stages: int
) -> Any:
    """Compile ``function`` as for a launch with these arguments on ``arch`` (``sm_90``, ``gfx942``, …)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    cuda = arch.startswith("sm_")
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32) if cuda else GPUTarget("hip", arch, 64)
    backend = make_backend(target)
    kinds: dict[str, Any] = {}
    constant: dict[tuple[int, ...], Any] = {}
    aligned: dict[tuple[int, ...], Any] = {}
    for index, name in enumerate(function.arg_names):
        value = constants[name] if name in constants else arguments[name]
        if isinstance(value, tuple):
            parts = [specialize(x) for x in value]
            kinds[name] = tuple(kind for kind, _ in parts)
            constant |= {(index, i): value[i] for i, (kind, _) in enumerate(parts) if kind == "constexpr"}
            aligned |= {(index, i): backend.parse_attr(key) for i, (_, key) in enumerate(parts) if key}
        else:
            kinds[name], key = ("constexpr", "") if name in constants else specialize(value, hip=not cuda)
            if kinds[name] == "constexpr":
                constant[(index,)] = value
            if key:
                aligned[(index,)] = backend.parse_attr(key)
    return triton.compile(
        ASTSource(function, kinds, constant, aligned),
        target=target,
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
    )


def specialize(value: Any, *, hip: bool = False) -> tuple[str, str]:
    """Specialization of an argument at launch: its type, and D if divisible by 16, S for tensors below 2 GiB."""
    if value is None:
        return "constexpr", ""
    if isinstance(value, torch.Tensor):
        key = "D" if value.data_ptr() % 16 == 0 else ""
        return POINTER_TYPES[value.dtype], key + ("S" if hip and value.untyped_storage().nbytes() < 2**31 else "")
    if isinstance(value, float):
        return "fp32", ""
    if value == 1:
        return "constexpr", ""
    return "i32" if -(2**31) <= value < 2**31 else "i64", "D" if value % 16 == 0 else ""


def _nvidia(compiled: Any, arch: str) -> KernelStats:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        listing = _tool("nvdisasm", "-c", file.name)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    names = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", listing, re.M)
    return KernelStats(
        arch=arch,
        registers=found["REG"],
        spilled=found["STACK"] + found["LOCAL"],
        shared=compiled.metadata.shared,
        instructions=len(names),
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        mix=_mix(names),
    )


def _amd(compiled: Any, arch: str) -> KernelStats:
    text = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", text)[0])

    names = re.findall(r"^\s+((?:v|s|ds|buffer|global|scratch|flat)_\w+)", text, re.M)
    spilled = number("private_segment_fixed_size") + 4 * number("vgpr_spill_count")
    return KernelStats(
        arch=arch,
        registers=number("vgpr_count"),
        spilled=spilled,
        scalar_spills=number("sgpr_spill_count"),
        shared=compiled.metadata.shared,
        instructions=len(names),
        mix=_mix(names),
    )


def _mix(names: list[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name in names:
        counts.update(group for group, pattern in INSTRUCTION_GROUPS.items() if re.match(pattern, name))
    return dict(sorted(counts.items()))


def _tool(name: str, *arguments: str) -> str:
    """Output of one of the CUDA tools that Triton brings."""
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__file__).parent / "bin" / name
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout
