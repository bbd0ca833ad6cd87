"""Fuzz inputs of run files and DeepSpeed JSONs: each loads, or raises a ValueError that names the file."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from ds4sci.config import deepspeed_json
from ds4sci.config.run_file import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.2
"""Lower than 1 because DeepSpeed parses each input too."""

ODD = (
    b"true", b"-1", b"0", b"1e999", b"nan", b"inf", b"null", b'""', b'"auto"', b'"x"', b"[]", b"{}", b"[[1]]", b"3.5",
    b"99999999999999999999999", b'{"a": 1}', b"{a = 1}", b'"\\u0000"', b'"..a"', b'"a.b"', b'"' + b"y" * 300 + b'"',
    b"[" * 3000, b"2026-01-01", b"\xff", b"\xef\xbb\xbf", b"\0", b"'", b'"', b"=", b"\n[x]\n", b"#", b",", b"}", b"]",
)  # fmt: skip
_VALUE = re.compile(rb'"[^"\n]*"|-?\d[\d.eE+-]*|true|false|null')


@cache
def seeds() -> tuple[bytes, ...]:
    """Configuration files of the project: b"T" (TOML) or b"J" (JSON) and the text."""
    tomls = [b"T" + file.read_bytes() for file in sorted((ROOT / "configs").rglob("*.toml"))]
    every = ROOT / "tests/fixtures/deepspeed_every_section.json"
    files = [every, every, *sorted((ROOT / "configs/deepspeed").glob("*.json"))]
    return (*tomls, *(b"J" + file.read_bytes() for file in files))


@cache
def prepare() -> None:
    """Import everything that ``check`` imports, DeepSpeed included: an import that a time limit interrupts stays
    broken."""
    check(b"J" + (ROOT / "configs/deepspeed/tiny_cpu.json").read_bytes())


def inputs(rng: np.random.Generator) -> bytes:
    """A file with one to four mutations: values exchanged, letters swapped, lines dropped, or arbitrary bytes
    inserted."""
    text = seeds()[int(rng.integers(len(seeds())))]
    for _ in range(int(rng.integers(1, 5))):
        how, at = int(rng.integers(6)), int(rng.integers(1, max(2, len(text))))
        values = list(_VALUE.finditer(text, 1))
        odd = ODD[int(rng.integers(len(ODD)))]
        if how <= 1 and values:
            one = values[int(rng.integers(len(values)))]
            text = text[: one.start()] + odd + text[one.end() :]
        elif how == 2 and values:
            one, other = (values[int(i)] for i in rng.integers(len(values), size=2))
            text = text[: one.start()] + other.group() + text[one.end() :]
        elif how == 3:
            text = text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]
        elif how == 4:
            lines = text.split(b"\n")
            first, second = (int(i) for i in rng.integers(len(lines), size=2))
            lines[second:second] = lines[first : first + int(rng.integers(3))]
            del lines[int(rng.integers(1, len(lines) + 1)) :][:1]
            text = b"\n".join(lines)
        else:
            text = text[:at] + odd + text[at + int(rng.integers(30)) :]
    return text[:1] + text[1:100_000]


def check(data: bytes) -> None:
    """Read ``data``; the only exception allowed is a ValueError that names the file."""
    from ds4sci.train import deepspeed_schema

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        name = "run.toml" if data[:1] == b"T" else "ds.json"
        file = Path(folder) / name
        file.write_bytes(data[1:])
        try:
            if name == "ds.json":
                config = deepspeed_json.read(file)
                deepspeed_json.batch_sizes(config, 1, file)
                deepspeed_schema.check(config, file)
                deepspeed_json.zero_stage(config)
                deepspeed_json.offloads(config)
            else:
                loaded = RunConfig.load(file)
                json.dumps(loaded.resolved())
        except ValueError as error:
            words = str(error)
            if not re.search(r"\.(toml|json|npz|fa)|task\.name", words):  # deepspeed = "…" may name another file
                raise AssertionError(f"the error does not name the file: {words[:300]}") from error
