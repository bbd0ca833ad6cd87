"""Readers of template hits: HHsearch (``.hhr``) and hmmsearch (Stockholm of ``hmmsearch -A``), as AlphaFold has them.

A hit is a local alignment of the query to a chain of the PDB, named ``1abc_A``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ds4sci.chemistry.residue_codes import UNKNOWN, encode
from ds4sci.data.alignments.msa import STOCKHOLM_SUFFIXES
from ds4sci.data.text_files import Source, read_text, suffix

HIT_SUFFIXES = (".hhr", *STOCKHOLM_SUFFIXES)

_HIT_START = re.compile(r"No \d+\s*")
_HHR_ROW = re.compile(r"([QT]) .{14} *(\d+) ([A-Za-z-]+) +(\d+) +\(\d+\)\s*")
"""A row of an alignment: a name of 14 characters, first residue, letters and gaps, last residue, length."""
_HHR_ANNOTATIONS = ("ss_dssp", "ss_pred", "ss_conf", "Consensus")
_CHAIN_NAME = re.compile(r"([A-Za-z0-9]{4,})_([A-Za-z0-9.]+)")
_HMMER_ROW_NAME = re.compile(r"(\S+)/(\d+)-(\d+)")
_MOLECULE = re.compile(r"\bmol:(\S+)")


@dataclass(frozen=True)
class TemplateHit:
    """Alignment of k residues of the query to a chain of the PDB.

    name       entry and chain, such as ``1abc_A``
    sequence   residues of the chain from the first to the last aligned one, insertions included, upper case
    start      position of the first of them in the chain, 0-based, as the file says
    query_at   int64 [k], aligned residues of the query, 0-based, increasing
    hit_at     int64 [k], index in ``sequence`` of each
    columns    number of aligned columns by which the hit is judged
    sum_probs  sum of the posterior probabilities of the columns (HHsearch), or None (hmmsearch)
    molecule   type of the polymer (``protein``, ``na``) in the description, "" if it has none
    """

    name: str
    sequence: str
    start: int
    query_at: np.ndarray
    hit_at: np.ndarray
    columns: int
    sum_probs: float | None = None
    molecule: str = ""

    @property
    def chain(self) -> tuple[str, str] | None:
        """Entry id in lower case and author chain id (``.`` = unknown), or None if the name does not begin with
        them."""
        found = _CHAIN_NAME.match(self.name)
        return None if found is None else (found[1].lower(), found[2])

    def identity(self, query: str) -> float:
        """Fraction of the aligned residues that are those of ``query``."""
        own = np.frombuffer(query.encode("ascii", "replace"), np.uint8)[self.query_at]
        other = np.frombuffer(self.sequence.encode(), np.uint8)[self.hit_at]
        return float((own == other).mean()) if len(own) else 0.0


def read_hits(path: Source, query: str) -> list[TemplateHit]:
    """Read the hits of ``query`` in the order of the file; the suffix selects the format.

    An empty Stockholm file, which hmmsearch writes without hits, has none. Raises ``ValueError`` with the file and the
    line for text that is not of the format, a truncated file, and hits of another query.
    """
    kind = suffix(path)
    if kind not in HIT_SUFFIXES:
        raise ValueError(f"{path}: unknown format {kind!r} of template hits; expected {', '.join(HIT_SUFFIXES)}")
    text = read_text(path)
    return _read_hhr(text, path, query) if kind == ".hhr" else _read_hmmsearch(text, path, query)


def _read_hhr(text: str, path: Source, query: str) -> list[TemplateHit]:
    lines = text.split("\n")
    if not lines[0].startswith("Query"):
        raise ValueError(f"{path}: line 1: expected 'Query', found {lines[0][:40]!r}; not an .hhr file of HH-suite")
    starts = [number for number, line in enumerate(lines) if _HIT_START.fullmatch(line)]
    ends = [*starts[1:], len(lines)]
    return [_hhr_hit(lines, start, end, path, query) for start, end in zip(starts, ends, strict=True)]


def _hhr_hit(lines: list[str], start: int, end: int, path: Source, query: str) -> TemplateHit:
    name = lines[start + 1].removeprefix(">") if start + 1 < end else ""
    values = dict(re.findall(r"([\w-]+)=\s*([^\s%]+)", lines[start + 2])) if start + 2 < end else {}
    try:
        columns, sum_probs = int(values["Aligned_cols"]), float(values["Sum_probs"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: line {start + 3}: expected 'Probab=… Aligned_cols=N … Sum_probs=X', found "
            f"{lines[start + 2][:60] if start + 2 < end else 'the end of the file'!r}"
        ) from error
    rows: dict[str, str] = {"Q": "", "T": ""}
    first: dict[str, int] = {}
    for number, line in enumerate(lines[start + 3 : end], start=start + 4):
        if line[:2] not in ("Q ", "T ") or line[2:].startswith(_HHR_ANNOTATIONS):
            continue
        match = _HHR_ROW.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: line {number}: expected NAME FIRST LETTERS LAST (LENGTH), found {line[:60]!r}")
        side, begin, letters, last = match[1], int(match[2]) - 1, match[3].upper(), int(match[4])
        residues = len(letters) - letters.count("-")
        expected = first.setdefault(side, begin) + len(rows[side]) - rows[side].count("-")
        if begin != expected or begin + residues != last:
            raise ValueError(
                f"{path}: line {number}: {residues} residues are numbered {begin + 1} to {last} after "
                f"{expected}; the file is damaged"
            )
        rows[side] += letters
    if len(rows["Q"]) != len(rows["T"]) or not first:
        raise ValueError(
            f"{path}: line {start + 1}: {len(rows['Q'])} columns of the query and {len(rows['T'])} of {name[:10]!r}; "
            "the file is truncated"
        )
    own, other = (np.frombuffer(rows[side].encode(), np.uint8) != ord("-") for side in "QT")
    both = own & other
    query_at = first["Q"] + np.cumsum(own)[both] - 1
    letters = rows["Q"].replace("-", "")
    _check_query(letters, first["Q"], query, f"{path}: line {start + 1}")
    hit_at = np.cumsum(other)[both] - 1
    return TemplateHit(name, rows["T"].replace("-", ""), first["T"], query_at, hit_at, columns, sum_probs)


def _check_query(letters: str, start: int, query: str, where: str) -> None:
    """Raise ValueError unless ``query`` has ``letters`` at ``start``; unknown residues match any."""
    found, expected = encode(letters), encode(query[start : start + len(letters)])
    if len(found) != len(expected):
        raise ValueError(f"{where}: aligned up to residue {start + len(found)} of a query of {len(query)} residues")
    differs = (found != expected) & (found < UNKNOWN) & (expected < UNKNOWN)
    if differs.any():
        at = int(np.argmax(differs))
        raise ValueError(
            f"{where}: hits of another query: residue {start + at + 1} is {letters[at]}, and {query[start + at]} in "
            "the record"
        )


def _read_hmmsearch(text: str, path: Source, query: str) -> list[TemplateHit]:
    """Match columns, with upper case and ``-``, are the residues of the query: the profile was built by ``hmmbuild
    --hand`` from an alignment whose reference columns are those."""
    if not text.strip():
        return []
    lines = text.split("\n")
    if not lines[0].startswith("# STOCKHOLM"):
        raise ValueError(f"{path}: line 1: expected '# STOCKHOLM 1.0', found {lines[0][:40]!r}")
    rows: dict[str, list[str]] = {}
    first_line: dict[str, int] = {}
    descriptions: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if line.startswith("#=GS") and len(words) > 3 and words[2] == "DE":
            descriptions[words[1]] = " ".join(words[3:])
        elif words and not line.startswith(("#", "//")):
            if len(words) != 2:
                raise ValueError(f"{path}: line {number}: expected a name and a sequence, found {len(words)} words")
            rows.setdefault(words[0], []).append(words[1])
            first_line.setdefault(words[0], number)
    if not any(line.startswith("//") for line in lines):
        raise ValueError(f"{path}: no '//' at the end of the alignment; the file is truncated")
    return [
        _hmmsearch_hit(name, "".join(parts), descriptions.get(name, ""), f"{path}: line {first_line[name]}", query)
        for name, parts in rows.items()
    ]


def _hmmsearch_hit(name: str, row: str, description: str, where: str, query: str) -> TemplateHit:
    letters = row.replace(".", "")
    if re.search(r"[^A-Za-z-]", letters):
        raise ValueError(f"{where}: row {name!r} has letters that are neither residues nor gaps")
    codes = np.frombuffer(letters.encode(), np.uint8)
    is_match = codes < ord("a")  # upper case or a gap
    if is_match.sum() != len(query):
        raise ValueError(
            f"{where}: row {name!r} has {is_match.sum()} match columns (upper case and '-'); expected {len(query)}, "
            "the residues of the query: hits of another query, or of a profile not built with hmmbuild --hand"
        )
    is_residue = codes != ord("-")
    aligned = is_match & is_residue
    numbered = _HMMER_ROW_NAME.fullmatch(name)
    molecule = _MOLECULE.search(description)
    return TemplateHit(
        name=name if numbered is None else numbered[1],
        sequence=letters.replace("-", "").upper(),
        start=0 if numbered is None else int(numbered[2]) - 1,
        query_at=np.cumsum(is_match)[aligned] - 1,
        hit_at=np.cumsum(is_residue)[aligned] - 1,
        columns=int(aligned.sum()),
        molecule="" if molecule is None else molecule[1],
    )
