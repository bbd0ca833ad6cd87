"""AlphaFold-Multimer: outputs and parameters against AlphaFold's code, conversions, chains of the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.config.run_file import RunConfig
from ds4sci.models.fold import Config, FoldModel
from ds4sci.models.published_weights import export_openfold, read_for, read_weights
from ds4sci.models.published_weights.inspection import check_parameters, convert, describe
from ds4sci.models.published_weights.multimer_key_map import MULTIMER_ENTRIES
from ds4sci.models.published_weights.sizes import PUBLISHED_MULTIMER, read_contents
from ds4sci.models.published_weights.translation import from_alphafold, parameters, to_alphafold, to_openfold
from ds4sci.types import Batch
from tests.support import synthetic_weights as synthetic
from tests.support.openfold_reference import MULTIMER_SIZES, imported
from tests.support.original_models import original

INCOMING = "alphafold/alphafold_iteration/evoformer/evoformer_iteration/triangle_multiplication_incoming"
PARAMETERS = 93_223_705
"""Of AlphaFold's tree of ``model_1_multimer_v3`` and of OpenFold's class (``test_openfolds_class``)."""


def tree(file: Path) -> dict[str, Tensor]:
    """Return the arrays of ``file`` without content."""
    return {name: torch.empty(shape, device="meta") for name, shape in synthetic.shapes(file).items()}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Parameters of a small multimer model, as AlphaFold names them."""
    return synthetic.parameters(synthetic.shapes(synthetic.SMALL_MULTIMER))


@pytest.fixture
def npz(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    file = tmp_path / "params_model_1_multimer_v3.npz"
    np.savez(file, **arrays)
    return file


@pytest.fixture(scope="module")
def small() -> Config:
    """Sizes of the small model, with two iterations of the structure module."""
    config = read_contents(from_alphafold(tree(synthetic.SMALL_MULTIMER))[0]).config
    return config.model_copy(update={"structure": config.structure.model_copy(update={"iterations": 2})})


@pytest.fixture(scope="module")
def batch() -> Batch:
    """The inputs of AlphaFold's outputs: two equal chains and another, with three templates, of which one is absent."""
    given = synthetic.inputs() | synthetic.chain_inputs() | synthetic.template_inputs()
    x = {name: torch.from_numpy(array)[None] for name, array in given.items()}
    extra = [F.one_hot(x["extra_msa"], 23), x["has_deletions"][..., None], x["deletions"][..., None]]
    n = synthetic.N
    return Batch(
        ids=("synthetic",), aatype=x["aatype"], residue_index=x["residue_index"],
        token_mask=torch.ones(1, n, dtype=torch.bool), msa_feat=x["msa_feat"], msa_mask=x["msa_mask"].bool(),
        extra_msa_feat=torch.cat(extra, -1), extra_msa_mask=x["extra_mask"].bool(),
        true_msa=torch.zeros(1, synthetic.S, n, dtype=torch.int64),
        masked_msa=torch.zeros(1, synthetic.S, n, dtype=torch.bool), atom_positions=torch.zeros(1, n, 37, 3),
        atom_mask=torch.zeros(1, n, 37, dtype=torch.bool), secondary=torch.zeros(1, n, dtype=torch.int64),
        resolution=torch.zeros(1), recycling=synthetic.RECYCLING, asym_id=x["asym_id"], entity_id=x["entity_id"],
        sym_id=x["sym_id"], **{name: x[name] for name in synthetic.template_inputs()},
    )  # fmt: skip


@pytest.fixture
def model(small: Config, npz: Path) -> FoldModel:
    made = FoldModel(small).eval()
    weights = read_for(made, npz)
    made.load_state_dict({name: weights.tensors[name] for name in weights.fit.loaded})
    return made


def test_outputs_equal_those_of_alphafolds_code(model: FoldModel, batch: Batch) -> None:
    """AlphaFold-Multimer's outputs in fp32, with recycling, templates and extra sequences."""
    with torch.no_grad():
        output = model(batch)
    with np.load(synthetic.MULTIMER_OUTPUTS, allow_pickle=False) as expected:
        assert len(expected.files) == 8
        for name in expected.files:
            found, wanted = getattr(output, name)[0].numpy(), expected[name]
            assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max(), name


def test_updates_in_place_equal_those_of_training(model: FoldModel, batch: Batch) -> None:
    model = model.double()
    with torch.no_grad():
        evaluated = model(batch)
    trained = model(batch)
    torch.testing.assert_close(trained.pair, evaluated.pair, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(trained.atom37, evaluated.atom37, rtol=1e-9, atol=1e-9)


def test_pairs_are_updated_without_extra_sequences(model: FoldModel, batch: Batch) -> None:
    """AlphaFold pads the extra MSA with masked rows, so that its stack always runs."""
    masked = replace(batch, extra_msa_mask=torch.zeros_like(batch.extra_msa_mask))
    absent = replace(batch, extra_msa_feat=batch.extra_msa_feat[:, :0], extra_msa_mask=batch.extra_msa_mask[:, :0])
    model = model.double()
    with torch.no_grad():
        expected, found, given = model(masked), model(absent), model(batch)
    torch.testing.assert_close(found.pair, expected.pair, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.atom37, expected.atom37, rtol=1e-12, atol=1e-12)
    assert (given.pair - found.pair).abs().max() > 0.1
    model(absent).pair.square().sum().backward()
    update = model.get_parameter("extra_msa_stack.blocks.0.pair.transition.linear_2.weight")
    assert update.grad is not None
    assert update.grad.abs().max() > 0


def test_a_single_chain_needs_no_numbers_of_chains(model: FoldModel, batch: Batch) -> None:
    ones = torch.ones_like(batch.aatype)
    with torch.no_grad():
        one = model(replace(batch, asym_id=ones, entity_id=ones, sym_id=ones))
        without = model(replace(batch, asym_id=None, entity_id=None, sym_id=None))
        complexes = model(batch)
    assert torch.equal(one.pair, without.pair)
    assert (one.pair - complexes.pair).abs().max() > 0.1


def test_equal_chains_are_told_apart_by_their_numbers_only(model: FoldModel, batch: Batch) -> None:
    """Renaming the chains changes nothing but ``sym_id``; a change of the entity does."""
    with torch.no_grad():
        expected, renamed = model(batch), model(replace(batch, asym_id=batch.asym_id + 4))
        other = model(replace(batch, entity_id=torch.ones_like(batch.entity_id)))
    assert torch.equal(expected.pair, renamed.pair)
    assert (expected.pair - other.pair).abs().max() > 1e-2


def test_the_published_tree_fits_the_model_and_is_made_again() -> None:
    given = tree(synthetic.MULTIMER)
    assert {entry.alphafold for entry in MULTIMER_ENTRIES} == given.keys()
    made, _, unknown = from_alphafold(given)
    assert not unknown
    assert (len(given), len(made), parameters(made)) == (330, 5062, PARAMETERS)
    contents = read_contents(made)
    assert contents.config == PUBLISHED_MULTIMER
    assert contents.presets == tuple(f"model_{number}_multimer_v3" for number in range(1, 6))
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == contents.shapes()
    again, without_place = to_alphafold(made)
    assert not without_place
    assert {name: array.shape for name, array in again.items()} == {name: x.shape for name, x in given.items()}


def test_the_preset_is_the_published_model() -> None:
    run = RunConfig.load("configs/fold/multimer_v3.toml")
    assert run.settings.model.model_copy(update={"checkpoint_blocks": False}) == PUBLISHED_MULTIMER
    features = run.settings.data.features
    assert (features.max_clusters, features.max_extra, features.max_templates) == (508, 2048, 4)
    assert features.resample_msa
    assert features.cluster_weights == "residues"
    assert features.prediction_masked_msa_probability == 0.15


def test_parameters_of_all_presets() -> None:
    """Models 1 to 5, with and without the pTM head, and AlphaFold-Multimer: counts of AlphaFold's trees."""
    found = {}
    for name in ("model_1", "model_3", "model_5", "multimer_v3"):
        config = RunConfig.load(f"configs/fold/{name}.toml").settings.model
        with torch.device("meta"):
            found[name] = sum(p.numel() for p in FoldModel(config).parameters())
    assert found == {
        "model_1": 93_229_082, "model_3": 92_899_674, "model_5": 92_899_674, "multimer_v3": PARAMETERS,
    }  # fmt: skip


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_openfolds_class() -> None:
    config = original("openfold.config").model_config("model_1_multimer_v3")
    with torch.device("meta"):
        theirs = original("openfold.model.model").AlphaFold(config).state_dict()
        ours, without_place = to_openfold(FoldModel(PUBLISHED_MULTIMER).state_dict())
    assert not without_place
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in theirs.items()}
    assert parameters(theirs) == PARAMETERS


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_tensors_equal_those_of_openfolds_importer(arrays: dict[str, np.ndarray]) -> None:
    expected = imported(arrays, MULTIMER_SIZES, preset="model_1_multimer_v3")
    found, _ = to_openfold(from_alphafold({name: torch.from_numpy(array) for name, array in arrays.items()})[0])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_conversions_are_bit_exact(npz: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    convert(npz, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "openfold")
    convert(tmp_path / "c.safetensors", tmp_path / "last.npz")
    with np.load(tmp_path / "last.npz", allow_pickle=False) as found:
        assert set(found.files) == arrays.keys()
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    joined = torch.load(tmp_path / "a.pt", weights_only=True)[
        "evoformer.blocks.1.pair_stack.tri_mul_in.linear_ab_p.bias"
    ]
    here = read_weights(tmp_path / "b.safetensors").tensors
    update = "evoformer.blocks.1.pair.multiplication_incoming.linear_"
    assert torch.equal(joined, torch.cat([here[f"{update}a_p.bias"], here[f"{update}b_p.bias"]]))
    last = f"{INCOMING}/projection//bias"
    assert np.array_equal(arrays[last][1], torch.cat([here[f"{update}b_p.bias"], here[f"{update}a_p.bias"]]).numpy())
    assert "Evans et al. 2021" in read_weights(tmp_path / "last.npz").notice


def test_earlier_versions_are_the_same_model(
    arrays: dict[str, np.ndarray], npz: Path, small: Config, tmp_path: Path
) -> None:
    """``model_1_multimer`` and ``_v2``: separate projections with the names of AlphaFold 2 (``fuse_projection_weights``
    is False), in the main stacks and in that of templates."""
    renamed = {"left_norm_input": "layer_norm_input", "center_norm": "center_layer_norm"}
    earlier: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        module, _, parameter = name.partition("//")
        parent, _, last = module.rpartition("/")
        if "triangle_multiplication" in parent and last in ("projection", "gate"):
            for side, half in zip(("left", "right"), np.split(array, 2, -1), strict=True):
                earlier[f"{parent}/{side}_{last}//{parameter}"] = half
        else:
            is_norm = "triangle_multiplication" in parent and last in renamed
            earlier[f"{parent}/{renamed[last]}//{parameter}" if is_norm else name] = array
    assert len(earlier) == len(arrays) + 6 * 4
    file = tmp_path / "params_model_1_multimer_v2.npz"
    np.savez(file, **earlier)
    found, expected = read_weights(file), read_weights(npz)
    assert not found.unknown
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert found.notice == expected.notice
    assert read_for(FoldModel(small), file).fit.loaded
    convert(file, tmp_path / "as_v3.npz")
    with np.load(tmp_path / "as_v3.npz", allow_pickle=False) as again:
        assert all(np.array_equal(again[name], array) for name, array in arrays.items())
    published = read_contents(from_alphafold(tree(synthetic.MULTIMER))[0])
    assert replace(published, is_earlier_multimer=True).presets[:6] == (
        *(f"model_{number}_multimer_v2" for number in range(1, 6)), "model_1_multimer",
    )  # fmt: skip
    assert check_parameters(found).is_earlier_multimer
    assert not check_parameters(expected).is_earlier_multimer


def test_a_damaged_file_is_refused(npz: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    gate = "alphafold/alphafold_iteration/evoformer/evoformer_iteration/triangle_multiplication_outgoing/gate//bias"
    for number, (content, words) in enumerate(
        (
            (arrays | {gate: arrays[gate][:, 1:]}, r"gate//bias: has the shape \[13\], expected two joined"),
            (
                {name: x for name, x in arrays.items() if name != gate},
                r"4 tensors of the model not in the file: .*_g\.",
            ),
        )
    ):
        np.savez(tmp_path / f"{number}.npz", **content)
        with pytest.raises(ValueError, match=words):
            convert(tmp_path / f"{number}.npz", tmp_path / "out.pt")


def test_a_monomer_model_names_the_other_kind(npz: Path, small: Config) -> None:
    with pytest.raises(ValueError, match=r"A model of the sizes of the file: model\.kind=multimer"):
        read_for(FoldModel(small.model_copy(update={"kind": "monomer"})), npz)
    assert "AlphaFold 2 in other sizes: model.kind=multimer model.c_m=12" in "\n".join(describe(npz))


def test_a_model_is_exported_for_openfold(model: FoldModel, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    export_openfold(model, tmp_path / "openfold.pt")
    found, _ = to_alphafold(read_weights(tmp_path / "openfold.pt").tensors)
    assert all(np.array_equal(found[name].numpy(), array) for name, array in arrays.items())
