"""Writers of predicted structures: mmCIF and PDB with pLDDT (0–100) in the B-factor column, confidence arrays."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import gemmi
import numpy as np

from ds4sci.chemistry.residue_constants import ATOM37, RESTYPE_1TO3
from ds4sci.files.array_files import save_arrays
from ds4sci.files.atomic_files import replace_text, replacing
from ds4sci.types import Prediction

CHAIN = "A"
CONFIDENCE_SUFFIX = ".confidence.npz"
PDB_MAX_RESIDUES = 9999
PDB_MAX_ATOMS = 99_999
"""Limits of the residue-number (4 digits) and serial (5 digits) columns of the PDB format (wwPDB 3.3)."""


class PdbLimitError(ValueError):
    """The structure does not fit the columns of the PDB format."""


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
    return path


def to_gemmi_structure(prediction: Prediction) -> gemmi.Structure:
    """Convert a prediction to a structure with one model and one polymer chain ``A``.

    Residue numbers are ``residue_index`` + 1. Atoms with ``atom_mask`` False are omitted. X is written as UNK.
    Raises ``ValueError`` with the record id if a placed atom is not finite or the shapes do not agree.
    """
    n = len(prediction.sequence)
    atoms, mask = np.asarray(prediction.atom37, dtype=np.float64), np.asarray(prediction.atom_mask, dtype=bool)
    plddt = np.asarray(prediction.plddt, dtype=np.float64)
    index = np.asarray(prediction.residue_index)
    if atoms.shape != (n, 37, 3) or mask.shape != (n, 37) or plddt.shape != (n,) or index.shape != (n,):
        raise ValueError(
            f"{prediction.id}: expected atom37 [{n}, 37, 3], atom_mask [{n}, 37], plddt [{n}] and residue_index [{n}] "
            f"for its {n} residues; got {atoms.shape}, {mask.shape}, {plddt.shape} and {index.shape}."
        )
    bad = np.flatnonzero((~np.isfinite(atoms).all(axis=2) & mask).any(axis=1) | ~np.isfinite(plddt))
    if len(bad):
        raise ValueError(
            f"{prediction.id}: coordinates or pLDDT of {len(bad)} residues are not finite (first: residue "
            f"{int(index[bad[0]]) + 1}); the model has diverged, use an earlier checkpoint."
        )
    names = [RESTYPE_1TO3.get(letter, "UNK") for letter in prediction.sequence]
    chain = gemmi.Chain(CHAIN)
    for row, name in enumerate(names):
        residue = gemmi.Residue()
        residue.name, residue.subchain, residue.entity_type = name, CHAIN, gemmi.EntityType.Polymer
        residue.seqid = gemmi.SeqId(int(index[row]) + 1, " ")
        residue.label_seq = row + 1
        residue.entity_id = "1"
        for column in np.flatnonzero(mask[row]):
            atom = gemmi.Atom()
            atom.name = ATOM37[column]
            atom.element = gemmi.Element(atom.name[0])
            atom.pos = gemmi.Position(*atoms[row, column].round(3))
            atom.occ, atom.b_iso = 1.0, round(float(plddt[row]), 2)
            residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    result = gemmi.Structure()
    result.name = re.sub(r"[^A-Za-z0-9_.-]", "_", prediction.id) or "model"
    title = re.sub(r"[^ -~]", "?", prediction.id)
    result.info["_struct.title"] = f"Predicted structure of {title} (pLDDT in the B-factor column)"
    result.info["_exptl.method"] = "THEORETICAL MODEL"
    result.add_model(model)
    entity = gemmi.Entity("1")
    entity.entity_type, entity.polymer_type = gemmi.EntityType.Polymer, gemmi.PolymerType.PeptideL
    entity.subchains, entity.full_sequence = [CHAIN], names
    result.entities.append(entity)
    result.assign_serial_numbers()
    return result


def mmcif_text(prediction: Prediction, date: datetime.date | None = None) -> str:
    """Return the mmCIF text with entity, sequence and ModelCIF's ``_ma_qa_metric``.

    The file has the categories that the template parsers of AlphaFold, OpenFold and ColabFold require: residue types,
    the sequence scheme, and a revision with ``date`` (by default today, UTC), which they compare with the template
    cutoff date. Raises ``ValueError`` as ``to_gemmi_structure`` does.
    """
    # no cell: a prediction has no crystal, and gemmi would write a unit cell of 1 Å
    groups = gemmi.MmcifOutputGroups(True, cell=False, symmetry=False, auth_all=True)
    document = to_gemmi_structure(prediction).make_mmcif_document(groups)
    block = document.sole_block()
    names = [RESTYPE_1TO3.get(letter, "UNK") for letter in prediction.sequence]
    components = block.init_loop("_chem_comp.", ["id", "type", "mon_nstd_flag"])
    for name in sorted(set(names)):
        # lower case as in PDB entries: AlphaFold and OpenFold search for "peptide"
        kind = "peptide linking" if name == "GLY" else "L-peptide linking"
        components.add_row([name, gemmi.cif.quote(kind), "." if name == "UNK" else "y"])
    hetero = block.find_loop("_entity_poly_seq.hetero")
    for at in range(len(hetero)):
        hetero[at] = "n"
    day = datetime.datetime.now(datetime.UTC).date() if date is None else date
    history = block.init_loop(
        "_pdbx_audit_revision_history.",
        ["ordinal", "data_content_type", "major_revision", "minor_revision", "revision_date"],
    )
    history.add_row(["1", "'Structure model'", "1", "0", day.isoformat()])
    scheme = block.init_loop(
        "_pdbx_poly_seq_scheme.",
        ["asym_id", "entity_id", "seq_id", "mon_id", "ndb_seq_num", "pdb_seq_num", "auth_seq_num", "pdb_mon_id",
         "auth_mon_id", "pdb_strand_id", "pdb_ins_code", "hetero"],
    )  # fmt: skip
    for row, name in enumerate(names):
        number = str(int(prediction.residue_index[row]) + 1)
        scheme.add_row([CHAIN, "1", str(row + 1), name, str(row + 1), number, number, name, name, CHAIN, ".", "n"])
    metric = block.init_loop("_ma_qa_metric.", ["id", "name", "type", "mode"])
    metric.add_row(["1", "pLDDT", "pLDDT", "global"])
    metric.add_row(["2", "pLDDT", "pLDDT", "local"])
    if prediction.ptm is not None:
        metric.add_row(["3", "pTM", "pTM", "global"])
    mean = block.init_loop("_ma_qa_metric_global.", ["ordinal_id", "model_id", "metric_id", "metric_value"])
    mean.add_row(["1", "1", "1", f"{float(np.mean(prediction.plddt)):.2f}"])
    if prediction.ptm is not None:
        mean.add_row(["2", "1", "3", f"{prediction.ptm:.4f}"])
    local = block.init_loop(
        "_ma_qa_metric_local.",
        ["ordinal_id", "model_id", "label_asym_id", "label_seq_id", "label_comp_id", "metric_id", "metric_value"],
    )
    for row, (name, value) in enumerate(zip(names, prediction.plddt, strict=True), start=1):
        local.add_row([str(row), "1", CHAIN, str(row), name, "2", f"{float(value):.2f}"])
    return document.as_string()


def write_mmcif(prediction: Prediction, path: str | Path) -> Path:
    """Write ``mmcif_text`` to ``path`` atomically and return the path."""
    return _write(Path(path), mmcif_text(prediction))


def write_pdb(prediction: Prediction, path: str | Path) -> Path:
    """Write ``prediction`` as a PDB file with SEQRES records and return the path.

    Raises ``PdbLimitError`` (a ``ValueError``) with the record id if the structure does not fit the columns of the
    format: residue numbers above 9999, more than 99,999 atoms, coordinates outside −999.999 … 9999.999 Å. Use mmCIF
    for such structures.
    """
    atoms = int(np.asarray(prediction.atom_mask).sum())
    last = int(np.max(prediction.residue_index)) + 1 if len(prediction.sequence) else 0
    placed = np.asarray(prediction.atom37)[np.asarray(prediction.atom_mask, dtype=bool)]
    for what, value, limit in (
        ("a residue number", last, PDB_MAX_RESIDUES),
        ("an atom number", atoms + 1, PDB_MAX_ATOMS),  # the TER record takes a serial number too
        ("a coordinate", float(placed.max(initial=0)), 9999.999),
        ("a negated coordinate", float((-placed).max(initial=0)), 999.999),
    ):
        if value > limit:
            raise PdbLimitError(
                f"{prediction.id}: does not fit the PDB format ({what} of {value:g}; the limit is {limit:g});"
                " use mmCIF."
            )
    return _write(Path(path), to_gemmi_structure(prediction).make_pdb_string())


def write_confidence(prediction: Prediction, path: str | Path) -> Path:
    """Write the confidence arrays of ``prediction`` as a compressed NPZ file and return the path.

    plddt float32 [n]; distances (Å), contacts and, if the model estimates it, pae (Å) as float16 [n, n]; secondary
    float16 [n, 3] if the model has that head. ``ds4sci.types.Prediction`` describes them.
    """
    arrays = {"plddt": np.asarray(prediction.plddt, dtype=np.float32)}
    for name in ("distances", "contacts", "pae", "secondary"):
        if (values := getattr(prediction, name)) is not None:
            arrays[name] = np.asarray(values, dtype=np.float16)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        save_arrays(file, arrays, compress=True)
    return path
