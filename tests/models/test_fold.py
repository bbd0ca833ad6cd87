"""Structure model: published sizes, invariance, padding, recycling, checkpointing, precision."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ds4sci.config.run_file import RunConfig
from ds4sci.data.structures.batch import collate
from ds4sci.geometry import atom37_to_atom14
from ds4sci.losses.fold import LossConfig, fold_loss
from ds4sci.models.fold import FoldModel, StemConfig, recycled_inputs
from ds4sci.types import Batch, Output, StemOutput
from tests.support.original_models import original
from tests.support.small_fold import SMALL
from tests.support.structure_batch import crops

OPENFOLD_PARAMETERS = 93_229_082


def test_number_of_parameters_of_the_published_model() -> None:
    for name, template_blocks, count in (("af2_initial", 0, 92_899_674), ("model_1", 2, OPENFOLD_PARAMETERS)):
        config = RunConfig.load(f"configs/fold/{name}.toml").settings.model
        assert config.template.blocks == template_blocks
        with torch.device("meta"):
            model = FoldModel(config)
            with_head = FoldModel(config.model_copy(update={"heads": (*config.heads, "tm")}))
        assert sum(p.numel() for p in model.parameters()) == count
        assert sum(p.numel() for p in with_head.parameters()) == count + 8_256


def test_settings_of_the_published_configurations() -> None:
    initial, finetune = (RunConfig.load(f"configs/fold/af2_{name}.toml").settings for name in ("initial", "finetune"))
    assert initial.model == finetune.model
    for settings, crop, clusters, extra in ((initial, 256, 128, 1024), (finetune, 384, 512, 5120)):
        assert settings.data.plan.phases[0].crops == (crop,)
        assert settings.data.features.max_clusters == clusters
        assert settings.data.features.max_extra == extra
        assert settings.data.plan.max_recycling == 3
        assert settings.data.features.resample_msa
        assert settings.model.structure.initial_frames == "identity"
        assert settings.model.stem.blocks == 0
    for name, extra in (("model_3", 5120), ("model_5", 1024)):  # fine-tuning from the published parameters
        tuned = RunConfig.load(f"configs/fold/{name}.toml")
        assert tuned.train.weights == Path(f"params_{name}.npz")
        assert tuned.settings.model == initial.model
        assert tuned.settings.loss == finetune.loss
        assert tuned.settings.data.features.max_extra == extra
        assert tuned.settings.data.features.resample_msa
        assert tuned.settings.data.features.prediction_masked_msa_probability == 0.15
        assert tuned.settings.data.features.cluster_weights == "rows"
        assert tuned.settings.loss.aligned_error == 0
        ptm = RunConfig.load(
            f"configs/fold/{name}.toml",
            ['model.heads=["masked_msa","experimentally_resolved","tm"]', "loss.aligned_error=0.1"],
        )
        assert ptm.settings.model.heads == (*initial.model.heads, "tm")
    tuned = RunConfig.load("configs/fold/model_1.toml")
    assert tuned.settings.model.model_copy(update={"template": initial.model.template}) == initial.model
    assert tuned.settings.loss == finetune.loss
    features = tuned.settings.data.features
    assert (features.max_clusters, features.max_extra, features.max_templates) == (508, 5120, 4)
    assert features.resample_msa
    small = RunConfig.load("configs/fold/tiny_cpu.toml").settings.data.features
    assert not small.resample_msa
    options = ("secondary", "smooth_lddt", "relative_distance", "local_fape", "initial_frames_fape", "chirality",
               "chain_bonds", "ca_clashes")  # fmt: skip
    for name in options:
        assert getattr(initial.loss, name) == getattr(finetune.loss, name) == 0
    assert (initial.loss.violation, finetune.loss.violation) == (0, 1)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two crops of a real entry with its real alignment, one shorter than the other."""
    return crops(24, 17)


@pytest.fixture
def model() -> FoldModel:
    torch.manual_seed(0)
    model = FoldModel(SMALL).double()
    with torch.no_grad():
        for parameter in model.parameters():  # layers initialized to zero would hide errors in other layers
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def wide(batch: Batch) -> Batch:
    return replace(batch, atom_positions=batch.atom_positions.double())


def loss_of(model: FoldModel, batch: Batch) -> torch.Tensor:
    config = LossConfig(**{name: 1.0 for name in LossConfig.model_fields if name not in
                           ("resolution", "initial_clamp", "unclamped_fraction", "geometry_from_progress",
                            "initial_frames_fape")})  # fmt: skip
    return fold_loss(model(batch), batch, config)[0]


def test_every_parameter_has_a_gradient(model: FoldModel, batch: Batch) -> None:
    loss_of(model, replace(batch, recycling=1)).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_padding_does_not_change_the_output(model: FoldModel, batch: Batch) -> None:
    model.eval()
    alone = collate([_row(batch, 1)])
    padded, bare = model(wide(batch)), model(wide(alone))
    n = int(batch.token_mask[1].sum())
    assert n < batch.token_mask.shape[1]
    for name in ("translations", "rotations", "angles"):
        torch.testing.assert_close(getattr(padded, name)[:, 1, :n], getattr(bare, name)[:, 0])
    torch.testing.assert_close(padded.atom37[1, :n], bare.atom37[0])
    for name in ("distogram_logits", "aligned_error_logits"):
        torch.testing.assert_close(getattr(padded, name)[1, :n, :n], getattr(bare, name)[0])
    torch.testing.assert_close(padded.plddt_logits[1, :n], bare.plddt_logits[0])


def _row(batch: Batch, i: int):  # type: ignore[no-untyped-def]
    from dataclasses import fields

    from ds4sci.types import Features

    n = int(batch.token_mask[i].sum())
    values = {}
    for field in fields(Features):
        if field.name == "id":
            values["id"] = batch.ids[i]
            continue
        if getattr(batch, field.name) is None:
            continue
        value = getattr(batch, field.name)[i].numpy()
        if value.ndim:
            value = value[:, :n] if "msa" in field.name else value[:n]
        values[field.name] = value
    return Features(**values)


def test_recycling_equals_iterated_passes(model: FoldModel, batch: Batch) -> None:
    model.eval()
    batch = wide(batch)
    once = model(batch)
    twice = model._pass(batch, recycled_inputs(batch, once))
    recycled = model(replace(batch, recycling=1))
    assert torch.equal(twice.translations, recycled.translations)
    assert not torch.allclose(once.translations, recycled.translations)
    zeros = replace(once, pair=torch.zeros_like(once.pair), msa0=torch.zeros_like(once.msa0),
                    atom37=torch.zeros_like(once.atom37))  # fmt: skip
    again = model._pass(batch, recycled_inputs(batch, zeros))
    torch.testing.assert_close(again.translations, once.translations)


def test_recycling_ends_when_distances_no_longer_change(model: FoldModel, batch: Batch) -> None:
    """The change that ends it is that of AlphaFold-Multimer's code, written out here."""
    model.eval()
    model.requires_grad_(False)
    outputs = [model(replace(wide(batch), recycling=passes)) for passes in range(4)]

    def change(first: int) -> float:
        found = []
        for row, n in enumerate(batch.token_mask.sum(1).tolist()):
            d, e = (torch.cdist(x, x) for x in (outputs[i].atom37[row, :n, 1] for i in (first, first + 1)))
            found.append(float((d - e).square().mean().sqrt()))
        return max(found)

    assert change(1) != change(0)
    for tolerance, passes in ((change(0) * 1.001, 2), (0.0, 3), (min(change(0), change(1)) * 0.999, 3)):
        found = model(replace(wide(batch), recycling=3, recycling_tolerance=tolerance))
        assert found.recycling == passes
        assert torch.equal(found.atom37, outputs[passes].atom37)


@pytest.fixture
def with_unknown(batch: Batch) -> Batch:
    """Some residues are X."""
    aatype = batch.aatype.clone()
    aatype[0, 3:6] = aatype[1, 0] = 20
    return replace(wide(batch), aatype=aatype)


def test_unknown_residues_are_recycled_without_atoms(model: FoldModel, batch: Batch, with_unknown: Batch) -> None:
    """Their Cβ is 0 as in AlphaFold, although the output has a backbone; those of other residues do not change."""
    output = model.eval()(with_unknown)
    unknown = (with_unknown.aatype == 20) & with_unknown.token_mask
    assert (output.atom37[unknown][:, 1].norm(dim=-1) > 0).all()
    beta, as_before = (recycled_inputs(given, output)[2] for given in (with_unknown, wide(batch)))
    assert (beta[unknown] == 0).all()
    known = ~unknown & with_unknown.token_mask
    assert torch.equal(beta[known], as_before[known])


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_recycled_positions_equal_those_of_openfold(model: FoldModel, with_unknown: Batch) -> None:
    """``iteration`` of OpenFold's model: its atom14 → atom37 with the atoms that exist, then its pseudo Cβ."""
    feats, constants = original("openfold.utils.feats"), original("openfold.np.residue_constants")
    transforms = original("openfold.data.data_transforms")
    output = model.eval()(with_unknown)
    tokens = with_unknown.token_mask
    made = transforms.make_atom14_masks({"aatype": with_unknown.aatype, "seq_mask": tokens.double()})
    assert not made["atom37_atom_exists"][with_unknown.aatype == constants.restype_num].any()
    atom14 = atom37_to_atom14(output.atom37, with_unknown.aatype)
    wanted = feats.pseudo_beta_fn(with_unknown.aatype, feats.atom14_to_atom37(atom14, made), None)
    assert torch.equal(recycled_inputs(with_unknown, output)[2][tokens], wanted[tokens])


def test_checkpointing_does_not_change_gradients(batch: Batch) -> None:
    gradients = []
    for checkpoint_blocks in (False, True):
        torch.manual_seed(0)
        config = SMALL.model_copy(
            update={
                "checkpoint_blocks": checkpoint_blocks,
                "evoformer": SMALL.evoformer.model_copy(update={"dropout_msa": 0.2, "dropout_pair": 0.2}),
            }
        )
        model = FoldModel(config)
        torch.manual_seed(1)
        loss_of(model, batch).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain is None) == (recomputed is None)
        if plain is not None:
            assert torch.equal(plain, recomputed)


def rotated(batch: Batch) -> Batch:
    angle = torch.tensor(0.7, dtype=torch.float64)
    c, s = torch.cos(angle), torch.sin(angle)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    moved = wide(batch).atom_positions @ turn.T + torch.tensor([3.0, -8.0, 5.0], dtype=torch.float64)
    return replace(batch, atom_positions=moved * batch.atom_mask.unsqueeze(-1))


def test_loss_is_invariant_to_rigid_motion(model: FoldModel, batch: Batch) -> None:
    torch.testing.assert_close(loss_of(model, wide(batch)), loss_of(model, rotated(batch)), rtol=1e-9, atol=0)


def test_initial_frames_along_a_chain_are_a_compact_helix(batch: Batch) -> None:
    config = SMALL.model_copy(update={"structure": SMALL.structure.model_copy(update={"initial_frames": "chain"})})
    output: Output = FoldModel(config).eval()(batch)
    rotation, ca = output.initial_frames
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0)
    step = ca[0, 1:] - ca[0, :-1]
    volume = (torch.linalg.cross(step[:-2], step[1:-1]) * step[2:]).sum(-1)
    assert (volume > 0).all()  # right-handed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_keep_geometry_in_fp32(batch: Batch, dtype: torch.dtype) -> None:
    model = FoldModel(SMALL).to(dtype)
    output = model(batch)
    assert output.rotations.dtype == output.translations.dtype == output.atom37.dtype == torch.float32
    eye = torch.eye(3).expand_as(output.rotations)
    torch.testing.assert_close(output.rotations @ output.rotations.mT, eye, atol=1e-5, rtol=0)
    loss, _ = fold_loss(output, batch, LossConfig())
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_stem_only_steps_train_the_stem(batch: Batch) -> None:
    config = SMALL.model_copy(
        update={
            "stem": StemConfig(blocks=2, stem_only_fraction=0.5),
            "structure": SMALL.structure.model_copy(update={"initial_frames": "chain"}),
        }
    )
    model = FoldModel(config)
    weights = LossConfig(initial_frames_fape=1.0, secondary=1.0)
    alone = model(replace(batch, progress=0.4))
    assert isinstance(alone, StemOutput)
    loss, terms = fold_loss(alone, batch, weights)
    assert set(terms) == {"initial_frames_fape", "secondary"}
    loss.backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert "stem" in moved
    assert not moved & {"evoformer", "extra_msa_stack", "distogram", "plddt"}

    whole = model(replace(batch, progress=0.5))
    assert isinstance(whole, Output)
    assert isinstance(model.eval()(replace(batch, progress=0.4)), Output)
    # an untrained trunk does not change the single representation of the stem, so initial frames are equal
    torch.testing.assert_close(whole.initial_frames[1], alone.initial_frames[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stem", [0, 1])
def test_updates_in_place_equal_those_of_training(model: FoldModel, batch: Batch, stem: int) -> None:
    """Without gradient, updates are added in place and rows of pairs normalized in parts; with it they are not."""
    config = SMALL.model_copy(update={"stem": StemConfig(blocks=stem)})
    updates = ("row_attention", "convolution", "column_attention", "transition")
    config = config.model_copy(update={"evoformer": config.evoformer.model_copy(update={"msa_updates": updates})})
    torch.manual_seed(1)
    model = FoldModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = replace(wide(batch), recycling=1)
    usual = model(batch)
    with torch.no_grad():
        found = model(batch)
    assert usual.pair.requires_grad
    for name in ("pair", "msa0", "atom37", "plddt_logits", "distogram_logits", "masked_msa_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(usual, name), rtol=1e-9, atol=1e-9)


def test_a_block_changes_its_inputs_only_if_told(model: FoldModel, batch: Batch) -> None:
    model.eval()
    with torch.no_grad():
        m, z = model.embed(wide(batch), None)
        kept = m.clone(), z.clone()
        mask = torch.ones(z.shape[:3], dtype=torch.bool)
        block = model.evoformer.blocks[0]
        outputs = block(m, z, batch.msa_mask, mask)
        assert torch.equal(m, kept[0])
        assert torch.equal(z, kept[1])
        assert all(x is y for x, y in zip(block(m, z, batch.msa_mask, mask, in_place=True), (m, z), strict=True))
        for found, expected in zip((m, z), outputs, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_frozen_parts_get_no_gradient(model: FoldModel, batch: Batch, checkpointed: bool) -> None:
    """The gradients of all other parameters are those of the whole model; the first parts have no gradient to pass."""
    patterns = ("input_embedder.*", "recycling_embedder.*", "extra_msa_*", "evoformer.blocks.0.*", "plddt.*")
    config = SMALL.model_copy(update={"freeze": patterns, "checkpoint_blocks": checkpointed})
    frozen = FoldModel(config).double()
    frozen.load_state_dict(model.state_dict())
    loss_of(model, batch).backward()
    loss_of(frozen, batch).backward()
    trained = {name for name, parameter in frozen.named_parameters() if parameter.grad is not None}
    everything = dict(model.named_parameters())
    assert everything.keys() - trained == {n for n in everything if any(fnmatch.fnmatch(n, p) for p in patterns)}
    for name in trained:
        torch.testing.assert_close(frozen.get_parameter(name).grad, everything[name].grad)
    with pytest.raises(ValueError, match=r"model.freeze: 'templates.\*' matches no parameter"):
        FoldModel(SMALL.model_copy(update={"freeze": ("templates.*",)}))
