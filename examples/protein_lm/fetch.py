"""Download of 78,233 protein chains as FASTA: ``python examples/protein_lm/fetch.py OUT.fasta``.

Downloads 48 MB with pip and installs nothing. The sequences are the unique ones of sidechainnet 1.0.1 (King and Koes,
BSD-3; from the PDB, CC0) with 30 residues or more.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LETTERS = set("ACDEFGHIKLMNPQRSTVWYXBZUO")


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheel = ["download", "--quiet", "--no-deps", "--dest", folder, "sidechainnet==1.0.1"]
        subprocess.run([sys.executable, "-m", "pip", *wheel], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            chains = json.loads(archive.read("sidechainnet/resources/full_protein_dssp_annotations.json"))
    first: dict[str, str] = {}
    for name, chain in chains.items():
        sequence = chain["Sequence"].upper()
        if len(sequence) >= 30 and set(sequence) <= LETTERS:
            first.setdefault(sequence, name)
    out.write_text("".join(f">{name}\n{sequence}\n" for sequence, name in first.items()))
    print(f"{out}: {len(first):,} chains, {sum(map(len, first)):,} residues")


main(Path(sys.argv[1]))
