"""Chromosome of *Escherichia coli* 536, from the Debian package bowtie-examples."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ds4sci.datasets.archives import extract
from ds4sci.datasets.dataset import Dataset, Source

FILE, VALID_FILE = "genome.fa", "valid.fa"
HELD_OUT = 0.1
"""Part of the chromosome, at its end, that ``configs/lm/genome_tiny.toml`` holds out."""
_MEMBER = "usr/share/doc/bowtie/examples/genomes/NC_008253.fna.gz"
_LINE = 70

DATASET = Dataset(
    name="ecoli_genome",
    version="1",
    title="Escherichia coli 536, complete chromosome",
    origin="NCBI NC_008253, in Debian's bowtie-examples 1.3.1",
    licence="public domain",
    splits={"all": "1 record, 4,938,920 bases", "valid": "its last 493,892 bases"},
    size=5_510_573,
    sources=(
        Source(
            kind="deb",
            package="bowtie-examples",
            version="1.3.1-1",
            sha256="3cec5c9f6460ea2236cf3d2688665328ab18d90eb2f8eaa0183dd1cd05c212ee",
            size=6_307_264,
        ),
    ),
    files={
        FILE: "cdd0874c881adf3e1819d22b7e49cffa3c761b0793a1b1f10b1c074eeadb4789",
        VALID_FILE: "aac9aa5533074a27525a6c26e6839c8a1985788ad32f2f84817eec4c2c7797c5",
    },
)


def make(folder: Path, sources: Mapping[str, Path]) -> None:
    """Write the chromosome, and for ``ds4sci eval`` its last tenth, as FASTA."""
    with tempfile.TemporaryDirectory() as scratch:
        (archived,) = extract(sources["bowtie-examples"], Path(scratch), [_MEMBER])
        text = gzip.decompress(archived.read_bytes()).decode("ascii")
    header, _, body = text.partition("\n")
    bases = "".join(body.split())
    held_out = bases[len(bases) - round(HELD_OUT * len(bases)) :]
    lines = "\n".join(held_out[i : i + _LINE] for i in range(0, len(held_out), _LINE))
    (folder / FILE).write_text(text, encoding="ascii", newline="\n")
    (folder / VALID_FILE).write_text(f"{header} last tenth\n{lines}\n", encoding="ascii", newline="\n")
