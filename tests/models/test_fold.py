"""Structure model: published sizes, invariance, padding, recycling, checkpointing, precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ds4sci.config.run_file import RunConfig
from ds4sci.data.alignments import msa
from ds4sci.data.loader import make_rng
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.parsers import mmcif
from ds4sci.losses.fold import LossConfig, fold_loss
from ds4sci.models.fold import FoldModel, StemConfig, recycled_inputs
from ds4sci.types import Batch, Output, StemOutput
from tests.support.small_fold import SMALL

DATA = Path(__file__).parents[1] / "fixtures"
OPENFOLD_PARAMETERS = 93_229_082


def test_number_of_parameters_of_the_published_model() -> None:
    for name, template_blocks, count in (("af2_initial", 0, 92_899_674), ("model_1", 2, OPENFOLD_PARAMETERS)):
        config = RunConfig.load(f"configs/fold/{name}.toml").settings.model
        assert config.template.blocks == template_blocks
        with torch.device("meta"):
            model = FoldModel(config)
        assert sum(p.numel() for p in model.parameters()) == count


def test_settings_of_the_published_configurations() -> None:
    initial, finetune = (RunConfig.load(f"configs/fold/af2_{name}.toml").settings for name in ("initial", "finetune"))
    assert initial.model == finetune.model
    for settings, crop, clusters, extra in ((initial, 256, 128, 1024), (finetune, 384, 512, 5120)):
        assert settings.data.plan.phases[0].crops == (crop,)
        assert settings.data.features.max_clusters == clusters
        assert settings.data.features.max_extra == extra
        assert settings.data.plan.max_recycling == 3
        assert settings.model.structure.initial_frames == "identity"
        assert settings.model.stem.blocks == 0
    for name, extra in (("model_3", 5120), ("model_5", 1024)):  # fine-tuning from the published parameters
        tuned = RunConfig.load(f"configs/fold/{name}.toml")
        assert tuned.train.weights == Path(f"params_{name}.npz")
        assert tuned.settings.model == initial.model
        assert tuned.settings.loss == finetune.loss
        assert tuned.settings.data.features.max_extra == extra
    tuned = RunConfig.load("configs/fold/model_1.toml")
    assert tuned.settings.model.model_copy(update={"template": initial.model.template}) == initial.model
    assert tuned.settings.loss == finetune.loss
    features = tuned.settings.data.features
    assert (features.max_clusters, features.max_extra, features.max_templates) == (508, 5120, 4)
    options = ("secondary", "smooth_lddt", "relative_distance", "local_fape", "initial_frames_fape", "chirality",
               "chain_bonds", "ca_clashes")  # fmt: skip
    for name in options:
        assert getattr(initial.loss, name) == getattr(finetune.loss, name) == 0
    assert (initial.loss.violation, finetune.loss.violation) == (0, 1)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two crops of a real entry with its real alignment, one shorter than the other."""
    record = mmcif.read(DATA / "mmcif" / "2q2k.cif.gz", "A")
    dssp = "H" * (len(record.sequence) // 2)
    dssp = dssp + "E" * (len(record.sequence) - len(dssp))
    record = replace(record, dssp=dssp, msa=msa.read(DATA / "msa" / "bfd_uniclust_hits.a3m"))
    features = FeatureConfig(msa_input="msa", max_clusters=2, max_extra=4)
    return collate([featurize(record, features, make_rng(0, 2, i), crop=n) for i, n in enumerate((24, 17))])


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
    torch.testing.assert_close(padded.distogram_logits[1, :n, :n], bare.distogram_logits[0])
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
