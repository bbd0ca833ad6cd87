"""Bundled genome of the bacteriophage lambda, as FASTA.

It is enough to see a genome language model run; ``ecoli_genome`` has 100 times as many bases.
"""

from __future__ import annotations

from ds4sci.datasets.dataset import Dataset

DATASET = Dataset(
    name="lambda_phage",
    version="1",
    title="Enterobacteria phage lambda, complete genome",
    origin="NCBI NC_001416.1, in Debian's bowtie2-examples",
    licence="public domain",
    splits={"all": "1 record, 48,502 bases"},
    size=15_404,
    files={"lambda_phage.fa.gz": "1dc8a47c917b7c48087b9855a1ebd313f96f6d6ca1627e37d65ccf8a728be51a"},
    bundled="examples/genome_lm/data",
)
