"""Report of a chain-set build: one row per file and chain, counts by reason, and a summary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds4sci.data.structures.parsers.atom_table import KEPT

NOT_ACCEPTED = "chain not accepted"
REJECTED_MEMBER = "chain of a rejected complex"
"""Kind of rejection of the chains of a complex, which has a row of its own with the reason."""
JOINED = "joined"
"""Status of a chain that is part of an accepted complex, which has a row of its own."""


@dataclass(frozen=True)
class BuildReport:
    """Result of a build. ``rows`` are the lines of the file ``report`` (OUT.report.jsonl).

    A row with status ``read`` describes a file that was parsed; its ``atoms`` counts the file's atom records by status
    (``ds4sci.data.structures.parsers.atom_table.ATOM_STATUSES``). Every other row describes a chain, or a file that
    could not be read. ``atoms_kept`` counts the atoms of a chain; they are in the set only if the chain is accepted.
    In a build of biological assemblies, ``assembly`` in the row of a file is the id of the one that was made, and the
    row of a copy has the chain that it was made of (``copy_of``) and the number of its atoms (``copied_atoms``).
    """

    out: Path
    report: Path
    files: int
    cached: int
    rows: list[dict[str, Any]] = field(repr=False)
    unused_alignments: list[str] = field(default_factory=list, repr=False)
    """Names in the alignment folder that match no chain."""
    unused_templates: list[str] = field(default_factory=list, repr=False)
    """Names in the folder of template hits that match no chain."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of chains (and unreadable files) by outcome: accepted, joined, duplicate, or the kind of rejection."""
        chains = [row for row in self.rows if row["status"] != "read"]
        return dict(Counter(row["status"] if row["status"] != "rejected" else row["kind"] for row in chains))

    @property
    def atoms(self) -> dict[str, int]:
        """Number of atom records of all parsed files by status, most frequent first.

        Kept atoms of chains that are not in the set have the status ``NOT_ACCEPTED``.
        """
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.get("atoms", {}))
            if row["status"] not in ("accepted", JOINED) and row.get("atoms_kept"):
                total.update({KEPT: -row["atoms_kept"], NOT_ACCEPTED: row["atoms_kept"]})
        return dict(total.most_common())

    @property
    def copied_atoms(self) -> int:
        """Number of atoms in the set that are copies made by the operators of assemblies."""
        return sum(row.get("copied_atoms", 0) for row in self.rows if row["status"] == JOINED)

    @property
    def excluded_alignment_rows(self) -> dict[str, int]:
        """Number of alignment rows and alignment files that are not in the set, by reason."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            for file in row.get("alignments", ()):
                counts.update({f"rows: {reason}": count for reason, count in file.get("excluded", {}).items()})
                if "skipped" in file:
                    counts[f"files: {file['skipped']}"] += 1
            for rows in row.get("pairing", ()):
                counts.update({f"{rows['kind']} rows: {reason}": count for reason, count in rows["excluded"].items()})
        return dict(counts)

    def summary(self) -> str:
        """Return a few lines of text: totals, and each kind of rejection with one example."""
        accepted = [row for row in self.rows if row["status"] == "accepted"]
        residues = sum(row["length"] for row in accepted)
        complexes = sum("chains" in row for row in accepted)
        what = f"{len(accepted) - complexes} chains" + f" and {complexes} complexes" * bool(complexes)
        lines = [f"{self.out}: {what}, {residues} residues from {self.files} files ({self.cached} from cache)"]
        for kind, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            if kind != "accepted":
                example = next(row for row in self.rows if kind in (row["status"], row.get("kind")))
                lines.append(f"  {count} {kind}, such as {example['chain'] or example['file']}: {example['reason']}")
        unknown = sum(row["unknown"] for row in accepted)
        if unknown:
            lines.append(f"  {unknown} residues of the accepted chains have an unknown type (X)")
        statuses = self.atoms
        records = sum(statuses.values())
        if records:
            others = ", ".join(f"{count:,} {status}" for status, count in statuses.items() if status != KEPT)
            kept = statuses.get(KEPT, 0)
            lines.append(
                f"  {records:,} atom records: {kept:,} kept ({kept / records:.1%})" + (f"; {others}" * bool(others))
            )
        lines += self._assembly_lines()
        for what, names in (("alignments", self.unused_alignments), ("template hits", self.unused_templates)):
            if names:
                lines.append(f"  {len(names)} {what} match no chain, such as {names[0]}")
        excluded = self.excluded_alignment_rows
        if excluded:
            lines.append(
                "  excluded from alignments: " + ", ".join(f"{count} {reason}" for reason, count in excluded.items())
            )
        return "\n".join([*lines, f"  report of all files and chains: {self.report}"])

    def _assembly_lines(self) -> list[str]:
        files = [row for row in self.rows if row["status"] == "read" and "assembly" in row]
        if not files:
            return []
        without = [row for row in files if row["reason"]]
        copies = sum(row["status"] == JOINED and "copy_of" in row for row in self.rows)
        lines = [
            f"  biological assemblies of {len(files) - len(without)} files; their operators added {copies} copies of"
            f" chains with {self.copied_atoms:,} atoms"
        ]
        if without:
            lines.append(f"  {len(without)} files such as {without[0]['file']} have {without[0]['reason']}")
        return lines


def report_row(
    file: str, chain: str | None, status: str, kind: str | None, reason: str | None, **more: Any
) -> dict[str, Any]:
    """Return one row of the report."""
    return {"file": file, "chain": chain, "status": status, "kind": kind, "reason": reason, **more}
