"""Published parameters: the key map against AlphaFold's and OpenFold's own code, files, conversions and errors."""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.models.fold import Config, FoldModel, TemplateConfig
from ds4sci.models.published_weights import export_openfold, read_for, read_weights
from ds4sci.models.published_weights.inspection import convert, describe
from ds4sci.models.published_weights.key_map import ENTRIES, TEMPLATES
from ds4sci.models.published_weights.sizes import read_contents
from ds4sci.models.published_weights.translation import (
    from_alphafold,
    parameters,
    to_alphafold,
    to_openfold,
)
from ds4sci.types import Batch
from tests.support import synthetic_weights as synthetic
from tests.support.openfold_reference import SMALL_SIZES, checksums, imported


def tree(file: Path, **parts: bool) -> dict[str, Tensor]:
    """Return the arrays of ``file`` without content."""
    return {name: torch.empty(shape, device="meta") for name, shape in synthetic.shapes(file, **parts).items()}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Parameters of a small model with templates and head of aligned errors, as AlphaFold names them."""
    return synthetic.parameters(synthetic.shapes(synthetic.SMALL))


@pytest.fixture
def npz(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """The parameters of a small model_3_ptm as AlphaFold's file."""
    file = tmp_path / "params_model_3_ptm.npz"
    np.savez(file, **{name: array for name, array in arrays.items() if "template_" not in name})
    return file


@pytest.fixture(scope="module")
def small() -> Config:
    """Sizes of the small model."""
    tensors, _, _ = from_alphafold(tree(synthetic.SMALL))
    sizes = read_contents(tensors).config.model_dump()
    sizes["structure"]["iterations"] = 2
    del sizes["template"]
    return Config.model_validate(sizes)


def test_the_key_map_has_all_names_of_alphafolds_code() -> None:
    published = synthetic.shapes(synthetic.PUBLISHED)
    assert {entry.alphafold for entry in ENTRIES} == published.keys()
    assert len(ENTRIES) == len({entry.here for entry in ENTRIES}) == len({entry.openfold for entry in ENTRIES}) == 338


@pytest.mark.parametrize(
    ("templates", "aligned_errors", "arrays", "tensors", "count"),
    [
        (True, False, 336, 5044, 93_229_082),  # published for model_1
        (True, True, 338, 5046, 93_237_338),
        (False, False, 265, 4915, 92_899_674),
        (False, True, 267, 4917, 92_907_930),
    ],
)
def test_published_counts(templates: bool, aligned_errors: bool, arrays: int, tensors: int, count: int) -> None:
    given = tree(synthetic.PUBLISHED, templates=templates, aligned_errors=aligned_errors)
    made, _, unknown = from_alphafold(given)
    assert not unknown
    assert (len(given), len(made), parameters(made)) == (arrays, tensors, count)
    of_templates = {name: tensor for name, tensor in made.items() if name.startswith(TEMPLATES)}
    assert (len(of_templates), parameters(of_templates)) == ((129, 329_408) if templates else (0, 0))


def test_the_published_tree_fits_the_model_and_is_made_again() -> None:
    given = tree(synthetic.PUBLISHED)
    made, _, _ = from_alphafold(given)
    contents = read_contents(made)
    assert contents.config == Config(
        template=TemplateConfig(blocks=2), heads=("masked_msa", "experimentally_resolved", "tm")
    )
    assert contents.presets == ("model_1_ptm", "model_2_ptm")
    model = contents.shapes()
    assert len(model) == 5046
    without = {name: tensor for name, tensor in made.items() if not name.startswith((TEMPLATES, "heads.tm."))}
    assert read_contents(without).config == Config()
    assert read_contents(without).presets == ("model_3", "model_4", "model_5")
    assert all(tuple(made[name].shape) == shape for name, shape in model.items())
    first_blocks = {name: tensor for name, tensor in made.items() if not re.search(r"blocks\.([2-9]|\d\d)\.", name)}
    again, without_place = to_alphafold(first_blocks)
    assert not without_place
    assert again.keys() == given.keys()
    stack = ("evoformer_iteration", "extra_msa_stack")
    for name, array in given.items():
        assert again[name].shape[1:] == array.shape[1:]
        assert again[name].shape[0] == (2 if any(part in name for part in stack) else array.shape[0])


def test_tensors_equal_those_of_openfolds_importer(arrays: dict[str, np.ndarray]) -> None:
    """The checksums are of OpenFold's own code, see ``openfold_reference``."""
    tensors, _, _ = from_alphafold({name: torch.from_numpy(array) for name, array in arrays.items()})
    found, _ = to_openfold(tensors)
    expected = json.loads(synthetic.CHECKSUMS.read_text(encoding="utf-8"))
    assert checksums(found) == expected


@pytest.mark.nightly
def test_openfolds_importer_makes_these_tensors(arrays: dict[str, np.ndarray]) -> None:
    assert checksums(imported(arrays, SMALL_SIZES)) == json.loads(synthetic.CHECKSUMS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("templates", [False, True])
def test_outputs_equal_those_of_alphafolds_code(
    templates: bool, arrays: dict[str, np.ndarray], npz: Path, small: Config, tmp_path: Path
) -> None:
    """AlphaFold's outputs in fp32, with recycling; a tensor in the wrong place changes them by 1 % or more."""
    given = {name: torch.from_numpy(array)[None] for name, array in synthetic.inputs().items()}
    extra = [F.one_hot(given["extra_msa"], 23), given["has_deletions"][..., None], given["deletions"][..., None]]
    n = synthetic.N
    batch = Batch(
        ids=("synthetic",), aatype=given["aatype"], residue_index=given["residue_index"],
        token_mask=torch.ones(1, n, dtype=torch.bool), msa_feat=given["msa_feat"], msa_mask=given["msa_mask"].bool(),
        extra_msa_feat=torch.cat(extra, -1), extra_msa_mask=given["extra_mask"].bool(),
        true_msa=torch.zeros(1, synthetic.S, n, dtype=torch.int64),
        masked_msa=torch.zeros(1, synthetic.S, n, dtype=torch.bool), atom_positions=torch.zeros(1, n, 37, 3),
        atom_mask=torch.zeros(1, n, 37, dtype=torch.bool), secondary=torch.zeros(1, n, dtype=torch.int64),
        resolution=torch.zeros(1), recycling=synthetic.RECYCLING,
    )  # fmt: skip
    if templates:
        npz = tmp_path / "params_model_1_ptm.npz"
        np.savez(npz, **arrays)
        small = read_contents(from_alphafold(tree(synthetic.SMALL))[0]).config
        small = small.model_copy(update={"structure": small.structure.model_copy(update={"iterations": 2})})
        template = {name: torch.from_numpy(array)[None] for name, array in synthetic.template_inputs().items()}
        batch = replace(batch, **template)
    model = FoldModel(small).eval()
    weights = read_for(model, npz)
    model.load_state_dict({name: weights.tensors[name] for name in weights.fit.loaded})
    with torch.no_grad():
        output = model(batch)
    with np.load(synthetic.TEMPLATE_OUTPUTS if templates else synthetic.OUTPUTS, allow_pickle=False) as expected:
        assert len(expected.files) == 7
        for name in expected.files:
            found, wanted = getattr(output, name)[0].numpy(), expected[name]
            assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max(), name


def test_conversions_are_bit_exact(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    first, last = tmp_path / "first.npz", tmp_path / "last.npz"
    np.savez(first, **arrays)
    convert(first, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "openfold")
    convert(tmp_path / "c.safetensors", last)
    with np.load(last, allow_pickle=False) as found:
        assert set(found.files) == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == np.float32
            assert np.array_equal(found[name], array), name
    names = {file: set(safetensors.torch.load_file(tmp_path / file)) for file in ("b.safetensors", "c.safetensors")}
    assert "heads.masked_msa.weight" in names["b.safetensors"]
    assert "aux_heads.masked_msa.linear.weight" in names["c.safetensors"]
    openfold = torch.load(tmp_path / "a.pt", weights_only=True)
    assert openfold.keys() == names["c.safetensors"]
    for file in ("a.pt", "b.safetensors", "c.safetensors", "last.npz"):  # the license of the first file stays
        assert "Jumper et al. 2021" in read_weights(tmp_path / file).notice


def earlier(name: str) -> str:
    """Return the name of a tensor in OpenFold 1, whose published files have these names."""
    name = re.sub(r"\.pair_stack\.", ".core.", name)
    name = re.sub(r"(blocks\.\d+\.)(msa_transition|outer_product_mean)\.", r"\1core.\2.", name)
    name = re.sub(r"_points\.linear\.", "_points.", name)
    name = name.removeprefix("template_embedder.")
    return name.replace("template_single_embedder", "template_angle_embedder")


@pytest.mark.parametrize("content", ["state dict", "ema", "prefixed"])
def test_openfolds_earlier_names_and_checkpoints(content: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    expected, _, _ = from_alphafold({name: torch.from_numpy(array) for name, array in arrays.items()})
    state = {earlier(name): tensor for name, tensor in to_openfold(expected)[0].items()}
    assert "evoformer.blocks.1.core.tri_mul_out.linear_a_p.weight" in state
    assert "template_angle_embedder.linear_1.weight" in state
    if content == "prefixed":
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({"ema": {"params": state, "decay": 0.999}} if content == "ema" else state, tmp_path / "f.pt")
    found = read_weights(tmp_path / "f.pt")
    assert not found.unknown
    assert found.names == "openfold"
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)


def test_heads_that_the_model_lacks_are_named(npz: Path, small: Config) -> None:
    assert len(read_for(FoldModel(small), npz).fit.loaded) == 453
    fit = read_for(FoldModel(small.model_copy(update={"heads": small.heads[:2]})), npz).fit
    assert len(fit.loaded) == 451
    assert fit.unused == dict.fromkeys(("heads.tm.weight", "heads.tm.bias"), "model.heads does not list this head")
    without = FoldModel(small.model_copy(update={"heads": ("experimentally_resolved",)}))
    assert read_for(without, npz).fit.unused["heads.masked_msa.bias"] == "model.heads does not list this head"


def test_templates_are_left_out_on_request_only(arrays: dict[str, np.ndarray], small: Config, tmp_path: Path) -> None:
    file, model = tmp_path / "params_model_1_ptm.npz", FoldModel(small)
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        read_for(model, file)
    text = str(caught.value)
    count = sum(array.size for name, array in arrays.items() if "template_" in name)
    assert f"129 tensors of the file ({count:,} parameters) not in the model: template_embedder." in text
    assert "and 124 more: the model has no templates (model.template.blocks)" in text
    assert """'train.weights_skip=["template_embedder.*"]'""" in text
    assert "A model of the sizes of the file: model.template.blocks=2 model.template.c_t=8 " in text
    fit = read_for(model, file, skip=["template_embedder.*"]).fit
    assert len(fit.unused) == 129
    assert set(fit.loaded) == set(model.state_dict())


def test_a_model_of_other_sizes_is_named_with_the_sizes_of_the_file(npz: Path, small: Config) -> None:
    sizes = small.model_dump()
    sizes["c_m"], sizes["evoformer"]["blocks"] = 16, 3
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        read_for(FoldModel(Config.model_validate(sizes)), npz)
    text = str(caught.value)
    assert re.search(r"\d+ tensors of the model not in the file: evoformer\.blocks\.2\.msa", text)
    assert re.search(r"\d+ tensors with another shape: .*\[12\] in the file, \[16\] in the model", text)
    assert text.endswith("- A model of the sizes of the file: model.c_m=12 model.evoformer.blocks=2")


def test_a_new_head_starts_from_its_initial_values(npz: Path, small: Config) -> None:
    model = FoldModel(small.model_copy(update={"heads": (*small.heads, "secondary")}))
    with pytest.raises(ValueError, match=r'4 tensors .*train\.weights_new=\["heads\.secondary\.\*"\]'):
        read_for(model, npz)
    fit = read_for(model, npz, new=["heads.secondary.*", "heads.masked_msa.bias"]).fit
    assert set(fit.new) == {"heads.masked_msa.bias"} | {n for n in model.state_dict() if "heads.secondary" in n}
    assert fit.unused["heads.masked_msa.bias"].startswith("train.weights_new")
    with pytest.raises(ValueError, match=r"train\.weights_new: 'head\.\*' matches no tensor of the model"):
        read_for(model, npz, new=["head.*"])


def test_the_ptm_head_is_loaded_converted_and_exported(
    npz: Path, arrays: dict[str, np.ndarray], small: Config, tmp_path: Path
) -> None:
    head, base = "alphafold/alphafold_iteration/predicted_aligned_error_head/logits//", tmp_path / "params_model_3.npz"
    model = FoldModel(small)
    weights = read_for(model, npz)
    assert not weights.fit.unused
    model.load_state_dict({name: weights.tensors[name] for name in weights.fit.loaded})
    assert np.array_equal(model.heads["tm"].weight.detach().numpy(), arrays[f"{head}weights"].T)
    assert np.array_equal(model.heads["tm"].bias.detach().numpy(), arrays[f"{head}bias"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_openfold(model, tmp_path / "ptm.pt")
        export_openfold(FoldModel(small.model_copy(update={"heads": small.heads[:2]})), tmp_path / "base.pt")
    state = torch.load(tmp_path / "ptm.pt", weights_only=True)
    assert torch.equal(state["aux_heads.tm.linear.weight"], model.heads["tm"].weight)
    assert not any("aux_heads.tm" in name for name in torch.load(tmp_path / "base.pt", weights_only=True))

    np.savez(base, **{k: v for k, v in arrays.items() if not k.startswith(head) and "template_" not in k})
    assert "without     heads tm" in describe(base)
    with pytest.raises(ValueError, match=r'2 tensors .* heads\.tm\.weight.*train\.weights_new=\["heads\.tm\.\*"\]'):
        read_for(model, base)
    assert set(read_for(model, base, new=["heads.tm.*"]).fit.new) == {"heads.tm.weight", "heads.tm.bias"}


class Payload:
    """An object that fails the test if it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("unpickled",)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weights=np.array([Payload()], dtype=object))
    with pytest.raises(
        ValueError, match=r"a\.npz: .* the array weights holds pickled Python objects, which are not read"
    ):
        read_weights(tmp_path / "a.npz")
    torch.save({"weight": torch.zeros(2), "object": Payload()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: not a readable torch file .* not unpickled: save"):
        read_weights(tmp_path / "a.pt")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for suffix in ("npz", "pt", "safetensors"):
        file = tmp_path / f"damaged.{suffix}"
        with pytest.raises(ValueError, match=f"damaged.{suffix}: no such file"):
            read_weights(file)
        file.write_bytes(b"PK\x03\x04 damaged")
        with pytest.raises(ValueError, match=f"damaged.{suffix}: not a readable"):
            read_weights(file)
    with pytest.raises(ValueError, match=r"x\.h5: unknown ending '\.h5'; expected one of \.npz"):
        read_weights(tmp_path / "x.h5")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt: holds a list, expected a state dict"):
        read_weights(tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(2, dtype=torch.int64)}, tmp_path / "integers.pt")
    with pytest.raises(ValueError, match=r"1 tensors are no floating-point numbers, such as weight \(torch\.int64\)"):
        read_weights(tmp_path / "integers.pt")


ITERATION = "alphafold/alphafold_iteration/evoformer/evoformer_iteration"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            "missing array",
            r"2 tensors of the model not in the file: evoformer\.blocks\.0\.pair\.transition\.linear_1\.bias",
        ),
        ("missing block", r"evoformer\.blocks\.1\.pair\.transition\.linear_1\.bias"),
        ("axes", r"transition1//bias: has the shape \[2, 32, 1\], expected the axes \[block o\]"),
        ("shape", r"2 tensors with another shape: .*linear_1\.bias: \[31\] in the file, \[32\] in the model"),
        ("unknown", r"1 names that AlphaFold 2 does not have: alphafold/alphafold_iteration/evoformer/other//weights"),
        ("relative positions", r"two tensors have the same meaning"),
        ("partial templates", r"1 tensor of the model not in the file: template_embedder\.pair_embedder\.bias"),
        ("partial head", r"1 tensor of the model not in the file: heads\.tm\.weight"),
        ("not a model", r"not the parameters of a structure model: linear_single\.weight is missing"),
        ("no heads", r"row_attention\.linear_z\.weight is missing or empty"),
        ("no points", r"the shapes of structure_module\.ipa\.\* give v_points = -2"),
    ],
)
def test_a_damaged_file_is_not_converted(
    damage: str, words: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    content, bias = dict(arrays), f"{ITERATION}/pair_transition/transition1//bias"
    evoformer = "alphafold/alphafold_iteration/evoformer"
    if damage == "missing array":
        del content[bias]
    elif damage == "missing block":
        content[bias] = content[bias][:1]
    elif damage == "axes":
        content[bias] = content[bias][..., None]
    elif damage == "shape":
        content[bias] = content[bias][:, 1:]
    elif damage == "unknown":
        content[f"{evoformer}/other//weights"] = np.zeros(2, np.float32)
    elif damage == "relative positions":  # of both kinds of models
        content[f"{evoformer}/~_relative_encoding/position_activations//bias"] = np.zeros(2, np.float32)
    elif damage == "partial templates":
        del content[f"{evoformer}/template_embedding/single_template_embedding/embedding2d//bias"]
    elif damage == "partial head":
        del content["alphafold/alphafold_iteration/predicted_aligned_error_head/logits//weights"]
    elif damage == "no heads":
        heads = f"{ITERATION}/msa_row_attention_with_pair_bias//feat_2d_weights"
        content[heads] = content[heads][..., :0]
    elif damage == "no points":
        points = (
            "alphafold/alphafold_iteration/structure_module/fold_iteration/invariant_point_attention/kv_point_local"
        )
        content[f"{points}//bias"] = content[f"{points}//bias"][:1]
    else:
        content = {name: array for name, array in content.items() if "single_activations" not in name}
    np.savez(tmp_path / "in.npz", **content)
    with pytest.raises(ValueError, match=words):
        convert(tmp_path / "in.npz", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    if damage not in ("axes", "relative positions"):  # which cannot be read at all
        assert "fits        no published model: " in "\n".join(describe(tmp_path / "in.npz"))


def test_formats_and_names_that_do_not_go_together_are_refused(npz: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got names = 'alphafold'"):
        convert(npz, tmp_path / "out.pt", "alphafold")
    with pytest.raises(ValueError, match=r"out\.bin: unknown ending"):
        convert(npz, tmp_path / "out.bin")
    convert(npz, tmp_path / "out.pt")
    with pytest.raises(ValueError, match=r"out\.pt: already exists"):
        convert(npz, tmp_path / "out.pt")
    half = {name: t.bfloat16() for name, t in torch.load(tmp_path / "out.pt", weights_only=True).items()}
    torch.save(half, tmp_path / "half.pt")
    with pytest.raises(ValueError, match=r"numpy has no torch\.bfloat16, the type of alphafold/"):
        convert(tmp_path / "half.pt", tmp_path / "half.npz")


def test_a_model_is_exported_for_openfold(npz: Path, small: Config, tmp_path: Path) -> None:
    model = FoldModel(small.model_copy(update={"heads": ("masked_msa", "secondary")}))
    with pytest.warns(UserWarning, match="OpenFold") as caught:
        export_openfold(model, tmp_path / "openfold.pt")
    texts = [str(one.message) for one in caught]
    assert any("without the head secondary, which OpenFold does not have" in text for text in texts)
    assert any("OpenFold also has the head experimentally_resolved" in text for text in texts)
    state = torch.load(tmp_path / "openfold.pt", weights_only=True)
    assert torch.equal(state["evoformer.linear.weight"], model.linear_single.weight)
    assert math.prod(state["aux_heads.masked_msa.linear.weight"].shape) == 23 * 12
    sizes = small.model_dump() | {"stem": {"blocks": 1}}
    with pytest.raises(ValueError, match=r"OpenFold has no place for \d+ tensors: stem\."):
        export_openfold(FoldModel(Config.model_validate(sizes)), tmp_path / "stem.pt")
