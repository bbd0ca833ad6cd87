"""Download of *E. coli* NC_008253 as FASTA: ``python examples/genome_lm/fetch.py OUT.fa``.

Downloads 6 MB from Debian's archive with apt-get. Also writes OUT.fa.valid.fa for ``ds4sci eval``: the last 10 % of the
genome, which ``genome_tiny.toml`` holds out.
"""

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

HELD_OUT = 0.1


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "bowtie-examples"], cwd=folder, check=True)
        subprocess.run(["dpkg-deb", "-x", str(next(Path(folder).glob("*.deb"))), folder], check=True)
        text = gzip.decompress(next(Path(folder).rglob("NC_008253.fna.gz")).read_bytes()).decode()
    out.write_text(text)
    header, _, rest = text.partition("\n")
    bases = "".join(rest.split())
    held = bases[len(bases) - round(HELD_OUT * len(bases)) :]
    lines = "\n".join(held[i : i + 70] for i in range(0, len(held), 70))
    out.with_name(f"{out.name}.valid.fa").write_text(f"{header} last tenth\n{lines}\n")
    print(f"{out}: {len(bases):,} bases, of which the last {len(held):,} also in {out}.valid.fa")


main(Path(sys.argv[1]))
