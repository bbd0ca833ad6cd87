"""Writers of predicted structures: mmCIF and PDB with pLDDT (0–100) in the B-factor column, confidence arrays."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from ds4sci.chemistry.chains import NAME_LETTERS, chain_name, chain_slices
from ds4sci.chemistry.residue_constants import ATOM37, RESTYPE_1TO3
from ds4sci.files.array_files import save_arrays
from ds4sci.files.atomic_files import replace_text, replacing
from ds4sci.types import Prediction

CONFIDENCE_SUFFIX = ".confidence.npz"
PDB_MAX_RESIDUES = 9999
PDB_MAX_ATOMS = 99_999
"""Limits of the residue-number (4 digits) and serial (5 digits) columns of the PDB format (wwPDB 3.3)."""
PDB_MAX_CHAINS = len(NAME_LETTERS)
"""Number of one-letter chain names."""


class PdbLimitError(ValueError):
    """The structure does not fit the columns of the PDB format."""


class _Chain(NamedTuple):
    """Name, entity and residues of a chain of a prediction."""

    name: str
    entity: str
    rows: slice


def _chains(prediction: Prediction) -> list[_Chain]:
    ids = prediction.chain_ids
    if ids is None:
        return [_Chain(chain_name(1), "1", slice(0, len(prediction.sequence)))]
    return [
        _Chain(chain_name(number), str(ids.entity_id[rows.start]), rows)
        for number, rows in enumerate(chain_slices(ids.asym_id), start=1)
    ]


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
    return path


def to_gemmi_structure(prediction: Prediction) -> gemmi.Structure:
    """Convert a prediction to a structure with one model and the polymer chain ``A``, or ``A``, ``B``, … of a complex.

    Copies of a chain are one entity. Residue numbers are ``residue_index`` + 1. Atoms with ``atom_mask`` False are
    omitted. X is written as UNK. Raises ``ValueError`` with the record id if a placed atom is not finite or the shapes
    do not agree.
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
    model = gemmi.Model(1)
    entities: dict[str, gemmi.Entity] = {}
    for one in _chains(prediction):
        chain = gemmi.Chain(one.name)
        for row in range(one.rows.start, one.rows.stop):
            residue = gemmi.Residue()
            residue.name, residue.subchain, residue.entity_type = names[row], one.name, gemmi.EntityType.Polymer
            residue.seqid = gemmi.SeqId(int(index[row]) + 1, " ")
            residue.label_seq = row - one.rows.start + 1
            residue.entity_id = one.entity
            for column in np.flatnonzero(mask[row]):
                atom = gemmi.Atom()
                atom.name = ATOM37[column]
                atom.element = gemmi.Element(atom.name[0])
                atom.pos = gemmi.Position(*atoms[row, column].round(3))
                atom.occ, atom.b_iso = 1.0, round(float(plddt[row]), 2)
                residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
        if one.entity not in entities:
            entity = entities[one.entity] = gemmi.Entity(one.entity)
            entity.entity_type, entity.polymer_type = gemmi.EntityType.Polymer, gemmi.PolymerType.PeptideL
            entity.full_sequence = names[one.rows]
        # a list of gemmi is a copy: it is set as a whole
        entities[one.entity].subchains = [*entities[one.entity].subchains, one.name]
    result = gemmi.Structure()
    result.name = re.sub(r"[^A-Za-z0-9_.-]", "_", prediction.id) or "model"
    title = re.sub(r"[^ -~]", "?", prediction.id)
    result.info["_struct.title"] = f"Predicted structure of {title} (pLDDT in the B-factor column)"
    result.info["_exptl.method"] = "THEORETICAL MODEL"
    result.add_model(model)
    for entity in entities.values():
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
    places = [
        (one, row, str(row - one.rows.start + 1))
        for one in _chains(prediction)
        for row in range(one.rows.start, one.rows.stop)
    ]
    for one, row, position in places:
        number, name = str(int(prediction.residue_index[row]) + 1), names[row]
        scheme.add_row([one.name, one.entity, position, name, position, number, number, name, name, one.name, ".", "n"])
    metric = block.init_loop("_ma_qa_metric.", ["id", "name", "type", "mode"])
    metric.add_row(["1", "pLDDT", "pLDDT", "global"])
    metric.add_row(["2", "pLDDT", "pLDDT", "local"])
    others = {"pTM": prediction.ptm, "ipTM": prediction.iptm}
    scores = [(name, value) for name, value in others.items() if value is not None]
    for index, (score, _) in enumerate(scores):
        metric.add_row([str(index + 3), score, score, "global"])
    mean = block.init_loop("_ma_qa_metric_global.", ["ordinal_id", "model_id", "metric_id", "metric_value"])
    mean.add_row(["1", "1", "1", f"{float(np.mean(prediction.plddt)):.2f}"])
    for index, (_, score_value) in enumerate(scores):
        mean.add_row([str(index + 2), "1", str(index + 3), f"{score_value:.4f}"])
    local = block.init_loop(
        "_ma_qa_metric_local.",
        ["ordinal_id", "model_id", "label_asym_id", "label_seq_id", "label_comp_id", "metric_id", "metric_value"],
    )
    for one, row, position in places:
        value = f"{float(prediction.plddt[row]):.2f}"
        local.add_row([str(row + 1), "1", one.name, position, names[row], "2", value])
    return document.as_string()


def write_mmcif(prediction: Prediction, path: str | Path) -> Path:
    """Write ``mmcif_text`` to ``path`` atomically and return the path."""
    return _write(Path(path), mmcif_text(prediction))


def write_pdb(prediction: Prediction, path: str | Path) -> Path:
    """Write ``prediction`` as a PDB file with SEQRES records, and TER after each chain, and return the path.

    Raises ``PdbLimitError`` (a ``ValueError``) with the record id if the structure does not fit the columns of the
    format: more than 62 chains, residue numbers above 9999, more than 99,999 atoms, coordinates outside −999.999 …
    9999.999 Å. Use mmCIF for such structures.
    """
    atoms = int(np.asarray(prediction.atom_mask).sum())
    last = int(np.max(prediction.residue_index)) + 1 if len(prediction.sequence) else 0
    placed = np.asarray(prediction.atom37)[np.asarray(prediction.atom_mask, dtype=bool)]
    chains = len(_chains(prediction))
    for what, value, limit in (
        ("a number of chains", chains, PDB_MAX_CHAINS),
        ("a residue number", last, PDB_MAX_RESIDUES),
        ("an atom number", atoms + chains, PDB_MAX_ATOMS),  # a TER record takes a serial number too
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

    plddt float32 [n]; of a complex asym_id int32 [n], the number of each residue's chain, from 1; distances (Å),
    contacts and, if the model estimates it, pae (Å) as float16 [n, n]; secondary float16 [n, 3] if the model has that
    head. ``ds4sci.types.Prediction`` describes them.
    """
    arrays = {"plddt": np.asarray(prediction.plddt, dtype=np.float32)}
    if prediction.chain_ids is not None:
        arrays["asym_id"] = np.asarray(prediction.chain_ids.asym_id, dtype=np.int32)
    for name in ("distances", "contacts", "pae", "secondary"):
        if (values := getattr(prediction, name)) is not None:
            arrays[name] = np.asarray(values, dtype=np.float16)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        save_arrays(file, arrays, compress=True)
    return path
