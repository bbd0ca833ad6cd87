"""A file as a sequence store, strictly and with bad records skipped: the two must agree."""

from __future__ import annotations

import shutil
from pathlib import Path

from ds4sci.data.sequences import SequenceStore, index

from .reading import Violation, folder, refused, same


def indexed(data: bytes, name: str) -> tuple[SequenceStore | None, int]:
    """The store of a file, None where it is refused; and records kept plus left out, when bad ones are skipped."""
    path = folder() / name
    path.write_bytes(data)
    strict = _index(path, "strict", "error")
    loose = _index(path, "loose", "skip")
    skipped = 0 if loose is None else sum(told["count"] for told in loose.manifest["skipped"].values())
    if (strict is not None) != (loose is not None and not skipped):
        raise Violation(f"strict gives {strict}, skipping {skipped} gives {loose}")
    if strict is not None and loose is not None:
        same("records", len(loose), len(strict))
    for store in (strict, loose):
        if store is not None:
            store.verify()
            if not (store.lengths > 0).all():
                raise Violation("a record without residues")
    if loose is None or "unreadable file" in loose.manifest["skipped"]:
        return strict, -1
    return strict, len(loose) + skipped


def _index(path: Path, out: str, bad: str) -> SequenceStore | None:
    place = folder() / f"{path.name}.{out}"
    for old in (place, place.with_name(f"{place.name}.work")):
        shutil.rmtree(old, ignore_errors=True)
    try:
        index([path], place, bad=bad, jobs=1)  # type: ignore[arg-type]
    except ValueError as error:
        refused(error, path)
        return None
    return SequenceStore.open(place)
