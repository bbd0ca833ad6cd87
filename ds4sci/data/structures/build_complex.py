"""Complex of one structure file, for ``ds4sci data build --complexes``: its accepted chains as one record.

The chains are those of the file, the asymmetric unit of a crystal structure, or those of a biological assembly
(``ds4sci.data.structures.assemblies``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds4sci.data.alignments import alignment_files
from ds4sci.data.structures.assemblies import AssemblyChains
from ds4sci.data.structures.build_cache import file_stamps
from ds4sci.data.structures.build_report import JOINED, REJECTED_MEMBER, report_row
from ds4sci.data.structures.chain_file import pack_all_arrays
from ds4sci.data.structures.chain_filters import BuildSettings, chain_size, rejection_reason
from ds4sci.data.structures.chain_inputs import ChainInputs
from ds4sci.data.structures.complexes import attach_alignments, share_templates
from ds4sci.data.structures.parsers.records import ParsedStructure
from ds4sci.data.text_files import FileSection
from ds4sci.types import Record


def make_complex(
    name: str,
    parsed: ParsedStructure,
    assembly: AssemblyChains,
    chains: Sequence[Record],
    inputs: ChainInputs,
    settings: BuildSettings,
) -> tuple[list[Record], list[dict[str, Any]], dict[str, Any]]:
    """Return the complex of the file ``name``, or no record, its report rows and the stamps of its inputs.

    ``chains`` are those of ``assembly`` with DSSP states. The complex has the id of the entry. Chains that are not in
    the assembly or fail a filter are left out, with a row that says why. The others have the status ``joined`` if the
    complex is accepted, else the reason of its rejection. One remaining chain is a record of its own, with its own id.

    The row of a copy made by an operator names its chain (``copy_of``) and counts its atoms as ``copied_atoms``: they
    are not atom records of the file.
    """
    if assembly.failure is not None and parsed.records:
        return [], _failed_assembly(name, parsed, assembly.failure), {}

    def size_of(chain: Record) -> dict[str, Any]:
        size = chain_size(chain)
        if (original := assembly.copy_of.get(chain.id)) is not None:
            size |= {"copied_atoms": size.pop("atoms_kept"), "copy_of": original}
        return size

    rows = [
        report_row(name, chain.id, "rejected", kind, reason, **size_of(chain))
        for chain, kind, reason in assembly.left_out
    ]
    members: list[tuple[Record, dict[str, Any]]] = []
    stamps: dict[str, Any] = {}
    failure: tuple[str, str] | None = None
    for chain in chains:
        size = size_of(chain)
        rejection = rejection_reason(chain, size["resolved"], settings)
        if any(chain.id == other.id for other, _ in members):
            rejection = ("same id", "an earlier chain of this file has the same id")
        key = alignment_files.chain_key(chain.id)
        stamps[key] = file_stamps(inputs.files(key))
        if rejection is None:
            try:
                chain, hits = inputs.attach_templates(chain, parsed.released)
                size |= hits
            except (ValueError, OSError) as error:
                failure = ("templates", f"{chain.id}: {error}")
        if rejection is not None:
            rows.append(report_row(name, chain.id, "rejected", *rejection, **size))
        else:
            members.append((chain, size))
    if not members:
        return [], rows, stamps
    own = share_templates([chain for chain, _ in members])
    record_id = parsed.entry if len(own) > 1 else own[0].id
    made, rejected, more = (
        _join(record_id, own, inputs.alignments_by_chain(), settings) if failure is None else (None, failure, {})
    )
    total: dict[str, Any] = {key: sum(size[key] for _, size in members) for key in ("length", "resolved", "unknown")}
    atoms = {"atoms_kept": members[0][1]["atoms_kept"]} if len(own) == 1 else {}
    if len(own) > 1:
        status, kind, reason = JOINED, None, f"chain of {record_id}"
        if rejected[1]:
            status, kind, reason = "rejected", REJECTED_MEMBER, rejected[1]
        rows += [report_row(name, chain.id, status, kind, reason, **size) for chain, size in members]
        total["chains"] = len(own)
    rows.append(report_row(name, record_id, "accepted" if made else "rejected", *rejected, **total | atoms | more))
    return ([] if made is None else [made]), rows, stamps


def _failed_assembly(name: str, parsed: ParsedStructure, failure: tuple[str, str]) -> list[dict[str, Any]]:
    """Return the rows of an assembly that cannot be made and of the chains of its file."""
    sizes = {chain.id: chain_size(chain) for chain in parsed.records}
    total: dict[str, Any] = {
        key: sum(size[key] for size in sizes.values()) for key in ("length", "resolved", "unknown")
    }
    rows = [report_row(name, id, "rejected", REJECTED_MEMBER, failure[1], **size) for id, size in sizes.items()]
    return [*rows, report_row(name, parsed.entry, "rejected", *failure, **total, chains=len(sizes))]


def _join(
    name: str,
    chains: Sequence[Record],
    alignments: Mapping[str, Sequence[Path | FileSection]],
    settings: BuildSettings,
) -> tuple[Record | None, tuple[str | None, str | None], dict[str, Any]]:
    """Return the complex, or None with kind and reason of its rejection, and what its row says about the alignment."""
    total = sum(len(chain.sequence) for chain in chains)
    if len(chains) > settings.max_chains:
        return None, ("too many chains", f"{len(chains)} chains; expected at most {settings.max_chains}"), {}
    if total > settings.max_length:
        reason = f"{total} residues in {len(chains)} chains; expected at most {settings.max_length}"
        return None, ("complex too long", reason), {}
    files = [alignments.get(alignment_files.chain_key(chain.id), ()) for chain in chains]
    try:
        made, reports, counts = attach_alignments(
            name,
            chains,
            files.__getitem__,
            max_rows=settings.max_complex_rows if len(chains) > 1 else settings.max_msa_rows,
            max_file_rows=settings.max_msa_rows,
        )
        pack_all_arrays([made])
    except (ValueError, OSError) as error:
        return None, ("alignment" if any(files) else "not storable", str(error)), {}
    more: dict[str, Any] = {"msa_rows": 0 if made.msa is None else len(made.msa.names)}
    if any(files):
        more["alignments"] = [row for report in reports for row in report.as_json()]
        more["pairing"] = [one.as_json() for one in counts]
    return made, (None, None), more
