"""Files of template hits, written from real chains with random alignments: ``.hhr`` and hmmsearch's Stockholm.

``python -m tests.support.template_hits`` writes those of ``tests/fixtures/template_hits``, and with the argument
``/folder/of/alphafold`` (in an environment with Biopython) what AlphaFold's own parsers and featurizers find in them.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[1] / "fixtures"
STRUCTURES, EXPECTED = FIXTURES / "mmcif", FIXTURES / "template_hits"
CUTOFF = "2020-01-01"
OBSOLETE = """ LIST OF OBSOLETE COORDINATE ENTRIES AND SUCCESSORS
OBSLTE    31-JUL-94 9ABC     1A8Q 2OWI
OBSLTE    06-NOV-19 9XYZ
"""
QUERY = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGGAEKWLHTYRNDCQ"
"""Ubiquitin with a tail of its own."""


@dataclass(frozen=True)
class Hit:
    """A hit: ``sequence`` of the chain from residue ``start`` (0-based); ``columns`` are pairs of a residue of the
    query and one of ``sequence``, or None for a gap, in order."""

    name: str
    sequence: str
    start: int
    columns: tuple[tuple[int | None, int | None], ...]
    sum_probs: float

    @property
    def aligned(self) -> int:
        return sum(q is not None and t is not None for q, t in self.columns)


def random_hit(
    name: str, chain: str, rng: np.random.Generator, *, start: int, first: int, columns: int, gaps: float = 0.1,
    sum_probs: float = 10.0, query: str = QUERY,
) -> Hit:  # fmt: skip
    """Return a hit of about ``columns`` columns from residue ``start`` of ``chain`` and ``first`` of ``query``."""
    pairs: list[tuple[int | None, int | None]] = [(first, 0)]
    q, t = first + 1, 1
    while len(pairs) < columns and q < len(query) and start + t < len(chain):
        kind = rng.random()
        inside = len(pairs) + 1 < columns and q + 1 < len(query) and start + t + 1 < len(chain)
        if inside and kind < gaps / 2:
            pairs.append((q, None))
            q += 1
        elif inside and kind < gaps:
            pairs.append((None, t))
            t += 1
        else:
            pairs.append((q, t))
            q, t = q + 1, t + 1
    while None in pairs[-1]:
        pairs.pop()
    t = max(one for _, one in pairs if one is not None) + 1
    return Hit(name, chain[start : start + t], start, tuple(pairs), sum_probs)


def hhr(hits: list[Hit], query: str = QUERY, width: int = 80) -> str:
    """Return the text of an ``.hhr`` file as HHsearch writes it."""
    lines = ["Query         query", f"Match_columns {len(query)}", "No_of_seqs    1 out of 1", "", " No Hit"]
    lines += [f"{i:3d} {hit.name:30.30s} 99.0" for i, hit in enumerate(hits, 1)] + [""]
    for number, hit in enumerate(hits, start=1):
        rows = [
            "".join("-" if c[side] is None else letters[c[side]] for c in hit.columns)  # type: ignore[index]
            for side, letters in enumerate((query, hit.sequence))
        ]
        position = [min(c[0] for c in hit.columns if c[0] is not None), hit.start]
        lines += [
            f"No {number}", f">{hit.name} a description",
            f"Probab=99.00  E-value=1.2E-20  Score=100.10  Aligned_cols={hit.aligned}  Identities=30%  "
            f"Similarity=0.5  Sum_probs={hit.sum_probs}  Template_Neff=3.100", "",
        ]  # fmt: skip
        for begin in range(0, len(rows[0]), width):
            for side, name in enumerate(("query", hit.name)):
                part = rows[side][begin : begin + width]
                count = len(part.replace("-", ""))
                ends = position[side] + 1, position[side] + count
                position[side] += count
                tag, total = "QT"[side], (len(query), 999)[side]
                row = f"{tag} {name:14.14s} {ends[0]:4d} {part} {ends[1]:4d} ({total})"
                extra = f"{tag} Consensus      {ends[0]:4d} {part.lower().replace('-', '~')} {ends[1]:4d} ({total})"
                lines += [f"{tag} ss_pred             {'H' * len(part)}", row, extra] if side else [row, extra]
            lines += ["Confidence            " + "9" * len(rows[0][begin : begin + width]), "", ""]
    return "\n".join([*lines, ""])


def hmmsearch(hits: list[Hit], query: str = QUERY, width: int = 60) -> str:
    """Return the text of a Stockholm file as ``hmmsearch -A`` writes it."""
    rows = {f"{hit.name}/{hit.start + 1}-{hit.start + len(hit.sequence)}": _row(hit, query) for hit in hits}
    inserts = [max(len(row[1][at]) for row in rows.values()) for at in range(len(query) + 1)]
    aligned = {}
    for name, (match, inserted) in rows.items():
        parts = [inserted[0].ljust(inserts[0], ".")]
        parts += [match[at] + inserted[at + 1].ljust(inserts[at + 1], ".") for at in range(len(query))]
        aligned[name] = "".join(parts)
    reference = "." * inserts[0] + "".join("x" + "." * count for count in inserts[1:])
    lines = ["# STOCKHOLM 1.0", ""]
    for hit, name in zip(hits, rows, strict=True):
        molecule = "na" if hit.name.startswith("9na") else "protein"
        lines.append(f"#=GS {name} DE [subseq from] mol:{molecule} length:{999}  A DESCRIPTION")
    for begin in range(0, len(reference), width):
        lines += ["", *(f"{name:20s} {row[begin : begin + width]}" for name, row in aligned.items())]
        lines.append(f"{'#=GC RF':20s} {reference[begin : begin + width]}")
    return "\n".join([*lines, "//", ""])


def _row(hit: Hit, query: str) -> tuple[str, list[str]]:
    """Letters of the match columns, and the insertions before the first column and after each."""
    match, inserted, at = ["-"] * len(query), [""] * (len(query) + 1), 0
    for q, t in hit.columns:
        if q is None:
            assert t is not None
            inserted[at] += hit.sequence[t].lower()
        else:
            match[q], at = "-" if t is None else hit.sequence[t], q + 1
    return "".join(match), inserted


def chains() -> dict[str, str]:
    """Return the sequences in ``STRUCTURES`` by entry and author chain id."""
    from ds4sci.data.structures.parsers import mmcif

    found = {}
    for path in sorted(STRUCTURES.glob("*.cif.gz")):
        parsed = mmcif.parse(path)
        for (author, _), record in zip(parsed.ids, parsed.records, strict=True):
            found[f"{path.name[:4]}_{author}"] = record.sequence
    return found


def hits(known: dict[str, str]) -> list[Hit]:
    """Return hits of every kind: used ones, and one or more for each reason to drop a hit (see their names below)."""
    rng = np.random.default_rng(7)
    make = lambda name, chain, **more: random_hit(name, chain, rng, **more)  # noqa: E731
    changed = known["1a8q_A"][:20] + "WWWW" + known["1a8q_A"][24:]
    with_x = known["1y57_A"].replace("D", "X")
    return [
        make("1ubq_A", known["1ubq_A"], start=0, first=0, columns=70, gaps=0.0, sum_probs=60.5),
        make("1y57_A", known["1y57_A"], start=150, first=3, columns=80, gaps=0.2, sum_probs=33.25),
        make("2Q2K_B", known["2q2k_B"], start=4, first=20, columns=50, sum_probs=40.0),
        make("4zey_Z", known["4zey_A"], start=10, first=5, columns=60, sum_probs=12.0),  # another chain id
        make("1y57_A", with_x, start=260, first=1, columns=60, sum_probs=11.0),  # unknown residues
        make("1kd8_C", known["1kd8_C"], start=2, first=30, columns=33, sum_probs=9.0),
        make("9abc_A", known["1a8q_A"], start=40, first=0, columns=60, sum_probs=8.0),  # replaced
        make("9xyz_A", known["1a8q_A"], start=40, first=0, columns=60, sum_probs=7.9),  # removed
        make("7l39_A", known["7l39_A"], start=40, first=0, columns=60, sum_probs=7.0),  # after the cut-off date
        make("1a8q_A", known["1a8q_A"], start=90, first=30, columns=9, gaps=0.0, sum_probs=6.0),  # too short
        Hit("1zzz_A", QUERY[1:], 0, tuple((i + 1, i) for i in range(len(QUERY) - 1)), 80.0),  # a duplicate
        make("1a8q_A", changed, start=5, first=10, columns=50, sum_probs=5.0),  # not the file's sequence
    ]  # fmt: skip


def write_hits() -> None:
    """Write the files of hits of ``EXPECTED``."""
    every = hits(chains())
    EXPECTED.mkdir(exist_ok=True)
    (EXPECTED / "q.hhr").write_text(hhr(every))
    # not the last one: AlphaFold's message about it fails without a sum of probabilities. PDB names are lower case
    found = [replace(hit, name=hit.name[:4].lower() + hit.name[4:]) for hit in every[:-1]]
    found += [replace(found[2], name="2q2k_A"), replace(found[0], name="9nab_A")]
    (EXPECTED / "q.sto").write_text(hmmsearch(found))


def write_expected(alphafold: Path) -> None:
    """Run AlphaFold's parsers and featurizers on the hits; write ``EXPECTED``: hit files and ``expected.npz``."""
    sys.path.insert(0, str(alphafold))
    from alphafold.data import parsers, templates  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path in STRUCTURES.glob("*.cif.gz"):
            (folder / path.name[:8]).write_bytes(gzip.decompress(path.read_bytes()))
        (folder / "obsolete.dat").write_text(OBSOLETE)
        given = {
            "mmcif_dir": str(folder), "max_template_date": CUTOFF, "max_hits": 20, "kalign_binary_path": "absent",
            "release_dates_path": None, "obsolete_pdbs_path": str(folder / "obsolete.dat"),
        }  # fmt: skip
        arrays = {}
        a3m = parsers.convert_stockholm_to_a3m((EXPECTED / "q.sto").read_text(), remove_first_row_gaps=False)
        for kind, featurizer, found in (
            ("hhr", templates.HhsearchHitFeaturizer, parsers.parse_hhr((EXPECTED / "q.hhr").read_text())),
            ("sto", templates.HmmsearchHitFeaturizer, parsers.parse_hmmsearch_a3m(QUERY, a3m, skip_first=False)),
        ):
            result = featurizer(**given).get_templates(query_sequence=QUERY, hits=found)
            features = result.features
            mask = features["template_all_atom_masks"].astype(bool)
            arrays |= {
                f"{kind}_names": np.array([name.decode() for name in features["template_domain_names"]]),
                f"{kind}_sequences": np.array([one.decode() for one in features["template_sequence"]]),
                f"{kind}_mask": mask,
                f"{kind}_positions": features["template_all_atom_positions"][mask].astype(np.float32),
                f"{kind}_errors": np.array([error[:80] for error in (*result.errors, *result.warnings)]),
            }
    np.savez_compressed(EXPECTED / "expected.npz", **arrays)


if __name__ == "__main__":
    write_expected(Path(sys.argv[1])) if sys.argv[1:] else write_hits()
