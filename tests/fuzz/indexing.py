"""Indexing of a file with errors raised and with bad records skipped: the two stores must agree."""

from __future__ import annotations

import shutil
from pathlib import Path

from ds4sci.data.sequences import SequenceStore, index

from .reading import Violation, assert_equal, check_error, temporary_folder


def index_twice(data: bytes, name: str) -> tuple[SequenceStore | None, int]:
    """(store, None if the file is rejected; number of records kept and skipped if bad records are skipped)."""
    path = temporary_folder() / name
    path.write_bytes(data)
    strict = _index(path, "strict", "error")
    loose = _index(path, "loose", "skip")
    skipped = 0 if loose is None else sum(entry["count"] for entry in loose.manifest["skipped"].values())
    if (strict is not None) != (loose is not None and not skipped):
        raise Violation(f"strict indexing gives {strict}, skipping {skipped} records gives {loose}")
    if strict is not None and loose is not None:
        assert_equal("records", len(loose), len(strict))
    for store in (strict, loose):
        if store is not None:
            store.verify()
            if not (store.lengths > 0).all():
                raise Violation("a record without residues")
    if loose is None or "unreadable file" in loose.manifest["skipped"]:
        return strict, -1
    return strict, len(loose) + skipped


def _index(path: Path, out: str, bad: str) -> SequenceStore | None:
    place = temporary_folder() / f"{path.name}.{out}"
    for old in (place, place.with_name(f"{place.name}.work")):
        shutil.rmtree(old, ignore_errors=True)
    try:
        index([path], place, on_bad_record=bad, jobs=1)  # type: ignore[arg-type]
    except ValueError as error:
        check_error(error, path)
        return None
    return SequenceStore.open(place)
