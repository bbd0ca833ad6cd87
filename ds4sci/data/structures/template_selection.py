"""Selection of templates from the hits of a chain, with AlphaFold's filters and a reason for each hit that is dropped.

Filters, in order (AlphaFold 2 supplement 1.2.3 and its code): obsolete entries, few aligned columns, near-duplicates of
the query, short hits, release date, hits whose residues are not found in the structure, too few atoms, equal templates.
The residues of a hit are looked up in the sequences of its mmCIF file; a hit that is not there as written is dropped
with this reason (AlphaFold aligns it again with Kalign).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.data.structures.parsers.records import ParsedStructure
from ds4sci.data.structures.template_files import align_templates
from ds4sci.data.structures.template_hits import TemplateHit
from ds4sci.data.structures.template_library import TemplateLibrary
from ds4sci.types import Record, TemplateSet

MAX_TEMPLATES = 20
"""Templates of a chain, the best of its hits."""
MIN_ALIGNED = 0.1
"""Aligned columns of a hit, as a fraction of the query: more than this."""
MAX_SUBSEQUENCE = 0.95
"""Length of a hit that is a part of the query, as a fraction of the query: at most this."""
MIN_LENGTH = 10
"""Least number of residues of a hit."""
MIN_ATOMS = 5
"""Least number of atoms of a template: those of alanine."""
MAX_CA_DISTANCE = 150.0
"""Å. Largest distance of neighbouring Cα atoms of a structure, above which it is wrong."""

SURPLUS = f"beyond the {MAX_TEMPLATES} best templates"


@dataclass(frozen=True)
class HitReport:
    """Outcome of a hit: ``reason`` is None for a template, else why it was dropped."""

    file: str
    hit: str
    reason: str | None
    sum_probs: float | None
    identity: float

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of the reports of ``data build`` and ``predict``."""
        row = {"file": self.file, "hit": self.hit, "status": "used" if self.reason is None else "dropped"}
        more = {"reason": self.reason, "sum_probs": self.sum_probs}
        return {**row, **{key: x for key, x in more.items() if x is not None}, "identity": round(self.identity, 3)}


def select_templates(
    query: str,
    hits: Sequence[tuple[str, TemplateHit]],
    library: TemplateLibrary,
    *,
    latest: date | None = None,
    own_entry: str | None = None,
) -> tuple[TemplateSet | None, list[HitReport]]:
    """Return the templates of ``query``, at most ``MAX_TEMPLATES``, and a report of each hit.

    hits       names of the files and hits. Hits with ``sum_probs`` come first, the highest first; others follow in
               their order
    latest     templates released after this date, or without a date, are dropped; None: no cut-off
    own_entry  entry of the query, lower case, whose chains are no templates, or None
    """
    order = sorted(range(len(hits)), key=lambda at: -_sum_probs(hits[at][1]))
    chosen: list[tuple[Record, np.ndarray]] = []
    seen: set[bytes] = set()
    reports: list[HitReport] = []
    for at in order:
        file, hit = hits[at]
        reason: str | None = SURPLUS
        if len(chosen) < MAX_TEMPLATES:
            try:
                template = _template(query, hit, library, latest, own_entry)
            except DroppedHit as error:
                reason = str(error)
            else:
                key, reason = _residues(*template), "the same residues as an earlier template"
                if key not in seen:
                    seen.add(key)
                    chosen.append(template)
                    reason = None
        name = " ".join(hit.name.split()[:1])
        reports.append(HitReport(file, name, reason, hit.sum_probs, hit.identity(query)))
    return align_templates(len(query), chosen) if chosen else None, reports


def _sum_probs(hit: TemplateHit) -> float:
    return -1.0 if hit.sum_probs is None else hit.sum_probs


def _residues(record: Record, index: np.ndarray) -> bytes:
    """The letters of a template at the residues of the query."""
    letters = np.frombuffer(record.sequence.encode(), np.uint8)
    return np.where(index >= 0, letters[index], ord("-")).astype(np.uint8).tobytes()


class DroppedHit(Exception):
    """A hit that gives no template; the text is the reason."""


def _template(
    query: str, hit: TemplateHit, library: TemplateLibrary, latest: date | None, own_entry: str | None
) -> tuple[Record, np.ndarray]:
    """Return the structure of a hit and its alignment to the query, or raise ``DroppedHit``."""
    if hit.molecule not in ("", "protein"):
        raise DroppedHit(f"not a protein but {hit.molecule!r}")
    if hit.chain is None:
        raise DroppedHit(f"the name {hit.name[:40]!r} does not begin with an entry and a chain, such as 1abc_A")
    entry, chain = hit.chain
    current = library.current(entry)
    if current is None:
        raise DroppedHit(f"{entry} was removed from the PDB")
    _check_alignment(query, hit)
    if own_entry in (entry, current):
        raise DroppedHit(f"{current} is the entry of the query")
    entry, path = current, library.path(current)
    if path is None:
        raise DroppedHit(f"no file {entry}.cif or {entry}.cif.gz in {library.folder}")
    try:
        structure = library.read(path)
    except (ValueError, OSError) as error:
        raise DroppedHit(str(error)) from error
    _check_release(structure, path, latest)
    author, record, offset = find_sequence(structure, chain, hit)
    return _aligned(query, hit, replace(record, id=f"{entry}_{author}"), offset)


def _check_alignment(query: str, hit: TemplateHit) -> None:
    """AlphaFold's filters that need no structure."""
    if hit.columns <= MIN_ALIGNED * len(query):
        raise DroppedHit(f"{hit.columns} of {len(query)} residues are aligned; expected more than {MIN_ALIGNED:.0%}")
    if len(hit.sequence) > MAX_SUBSEQUENCE * len(query) and hit.sequence in query:
        raise DroppedHit(f"a duplicate: its sequence is {len(hit.sequence)} of the {len(query)} residues of the query")
    if len(hit.sequence) < MIN_LENGTH:
        raise DroppedHit(f"{len(hit.sequence)} residues; expected at least {MIN_LENGTH}")


def _check_release(structure: ParsedStructure, path: Path, latest: date | None) -> None:
    if latest is None:
        return
    if structure.released is None:
        raise DroppedHit(f"{path.name} has no release date (_pdbx_audit_revision_history), and there is a cut-off date")
    if structure.released > latest:
        raise DroppedHit(f"released on {structure.released}, after the cut-off date {latest}")


def find_sequence(structure: ParsedStructure, chain: str, hit: TemplateHit) -> tuple[str, Record, int]:
    """Return the chain of a structure with the residues of a hit: author id, record, position of the first of them.

    As in AlphaFold: first the chain with this author id, then any chain, then any with X in place of residues on either
    side. A chain that has the residues several times is used at the position in the file of hits if they are there,
    else at the first one. Raises ``DroppedHit`` if no chain has them.
    """
    records = [(author, one) for (author, _), one in zip(structure.ids, structure.records, strict=True)]
    for author, record in sorted(records, key=lambda one: one[0] != chain):
        if record.sequence.startswith(hit.sequence, hit.start):
            return author, record, hit.start
        if (place := record.sequence.find(hit.sequence)) >= 0:
            return author, record, place
    pattern = re.compile("".join("." if letter == "X" else f"[{letter}X]" for letter in hit.sequence))
    for author, record in records:
        if match := pattern.search(record.sequence):
            return author, record, match.start()
    have = "no protein chain" if not records else f"chains {', '.join(author for author, _ in records)}"
    raise DroppedHit(
        f"no chain of {Path(structure.path).name} has the {len(hit.sequence)} residues {hit.sequence[:12]}… of the "
        f"hit as written; the file has {have}"
    )


def _aligned(query: str, hit: TemplateHit, record: Record, offset: int) -> tuple[Record, np.ndarray]:
    ca = record.atom_positions[:, ATOM37_INDEX["CA"]], record.atom_mask[:, ATOM37_INDEX["CA"]]
    steps = np.linalg.norm(np.diff(ca[0], axis=0), axis=1) * (ca[1][1:] & ca[1][:-1])
    if steps.max(initial=0.0) > MAX_CA_DISTANCE:
        at = int(steps.argmax())
        raise DroppedHit(f"Cα of residues {at + 1} and {at + 2} are {steps[at]:.0f} Å apart; the structure is damaged")
    index = np.full(len(query), -1)
    index[hit.query_at] = offset + hit.hit_at
    atoms = int(record.atom_mask[index[index >= 0]].sum())
    if atoms < MIN_ATOMS:
        raise DroppedHit(f"{atoms} atoms at the aligned residues; expected at least {MIN_ATOMS}")
    letters = record.sequence[:offset] + hit.sequence + record.sequence[offset + len(hit.sequence) :]
    return replace(record, sequence=letters), index
