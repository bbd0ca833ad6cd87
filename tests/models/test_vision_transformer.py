"""Vision transformer against transformers' own classes, the geometry of patches, and transfer of weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import ViTForImageClassification, ViTModel

from ds4sci.models import vision_transformer as vit
from ds4sci.models.patches import interpolate_positions, patchify, sine_positions, unpatchify
from ds4sci.types import ArrayBatch

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}


def build(head: str, patch: tuple[int, ...], size: tuple[int, ...], **more: object) -> vit.VisionTransformer:
    config = vit.Config.model_validate({"head": head, "patch": patch, "config": SMALL} | more)
    return vit.build(config, channels=2, size=size, classes=0 if head == "masked_autoencoder" else 3, seed=0)


@pytest.mark.parametrize(("patch", "size"), [((4, 2), (8, 6)), ((2, 3, 4), (4, 6, 8))])
def test_patches_are_those_of_a_convolution(patch: tuple[int, ...], size: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    weight = torch.randn(5, 3, *patch, dtype=torch.float64)
    convolution = (F.conv2d if len(patch) == 2 else F.conv3d)(x, weight, stride=patch)
    torch.testing.assert_close(F.linear(patchify(x, patch), weight.flatten(1)), convolution.flatten(2).transpose(1, 2))
    grid = [n // p for n, p in zip(size, patch, strict=True)]
    assert torch.equal(unpatchify(patchify(x, patch), patch, grid), x)


@pytest.mark.parametrize("head", ["classification", "segmentation"])
def test_the_export_gives_the_results_of_transformers(head: str, tmp_path: Path) -> None:
    """Hidden states and logits of transformers' own class on the exported folder, on an image that is not square."""
    model = build(head, (4, 2), (8, 12)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    vit.export(model, tmp_path, ("a", "b", "c"))
    inputs = torch.randn(3, 2, 8, 12)
    batch = ArrayBatch(
        ("x",) * 3, inputs, torch.zeros(3, *((8, 12) if head == "segmentation" else ()), dtype=torch.int64)
    )
    with torch.no_grad():
        if head == "classification":
            other = ViTForImageClassification.from_pretrained(tmp_path).eval()
            torch.testing.assert_close(model(batch).values[:, 0, 0], other(inputs).logits, rtol=1e-4, atol=1e-5)
            assert other.config.id2label == {0: "a", 1: "b", 2: "c"}
        else:
            other = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
            torch.testing.assert_close(model.hidden(batch), other(inputs).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_the_encoder_does_not_see_hidden_patches() -> None:
    """Values of hidden patches change the targets, and not the reconstruction."""
    model = build("masked_autoencoder", (2, 3, 4), (4, 6, 8), normalize_targets=False).eval()
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 1]])
    inputs = torch.randn(2, 2, 4, 6, 8)
    patches = patchify(inputs, (2, 3, 4))
    other = torch.where(mask.bool().unsqueeze(-1), torch.randn_like(patches), patches)
    with torch.no_grad():
        one = model(ArrayBatch(("a", "b"), inputs, mask))
        two = model(ArrayBatch(("a", "b"), unpatchify(other, (2, 3, 4), model.grid), mask))
    assert torch.equal(one.values, two.values)
    torch.testing.assert_close(one.targets[:, 1:], patches)
    assert torch.equal((one.index[:, 1:] > 0).long(), mask)
    changed = replace(ArrayBatch(("a", "b"), inputs, mask), inputs=inputs + 1.0)
    assert not torch.allclose(model(changed).values, one.values)


def test_positions_differ_and_are_interpolated() -> None:
    for grid in ((5, 7), (3, 4, 5)):
        table = sine_positions(grid, 32)
        assert table.shape == (int(np.prod(grid)), 32)
        distance = torch.cdist(table, table) + 9 * torch.eye(len(table))
        assert distance.min() > 0.1
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    table = torch.cat((torch.tensor([[7.0]]), (2 * y + x).reshape(-1, 1)))
    finer = interpolate_positions(table, (6, 6), (12, 12))
    assert finer[0, 0] == 7
    middle = finer[1:, 0].view(12, 12)[4:8, 4:8]
    expected = 2 * ((torch.arange(4.0, 8)[:, None] + 0.5) / 2 - 0.5) + (torch.arange(4.0, 8) + 0.5) / 2 - 0.5
    torch.testing.assert_close(middle, expected, rtol=0, atol=0.2)  # torch's cubic kernel: a = −0.75


@pytest.mark.parametrize(("patch", "size", "larger"), [((4, 2), (8, 6), (12, 8)), ((2, 3, 4), (4, 6, 8), (4, 9, 8))])
def test_a_pretrained_encoder_is_loaded(
    patch: tuple[int, ...], size: tuple[int, ...], larger: tuple[int, ...], tmp_path: Path
) -> None:
    pretrained = build("masked_autoencoder", patch, size)
    vit.export(pretrained, tmp_path, ())
    own = build("segmentation", patch, size, path=tmp_path, config={})
    for name, value in vit.encoder_weights(pretrained).items():
        assert torch.equal(vit.encoder_weights(own)[name], value), name
    grown = build("segmentation", patch, larger, path=tmp_path, config={})
    assert len(grown.embeddings.position_embeddings[0]) == 1 + grown.patches
    assert torch.equal(grown.embeddings.projection.weight, pretrained.embeddings.projection.weight)
    with pytest.raises(ValueError, match="for images of 2 channels; the examples have 1"):
        vit.build(vit.Config(patch=patch, path=tmp_path), channels=1, size=size, classes=3, seed=0)
    with pytest.raises(ValueError, match=r"do not fit the encoder: embeddings\.patch_embeddings\.projection\.weight"):
        build("segmentation", tuple(n // 2 if n == 4 else n for n in patch), size, path=tmp_path, config={})
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        build("segmentation", patch, size, path=tmp_path, config={})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type 'bert'; expected vit"):
        build("segmentation", patch, size, path=tmp_path, config={})


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.patch = \[4, 5\] does not divide the examples, \[8, 12\]"):
        build("segmentation", (4, 5), (8, 12))
    with pytest.raises(ValueError, match=r"model\.patch = \[4, 4\]: 2 axes; the examples have 3"):
        build("segmentation", (4, 4), (8, 12, 4))
    with pytest.raises(ValueError, match=r"ViTConfig has no key 'hiden_size' .*did you mean hidden_size"):
        build("segmentation", (4, 4), (8, 12), config={"hiden_size": 3})
    with pytest.raises(ValueError, match=r"hidden_size = 24 is no multiple of num_attention_heads = 5"):
        build("segmentation", (4, 4), (8, 12), config=SMALL | {"num_attention_heads": 5})
    with pytest.raises(ValueError, match="attention has no dropout"):
        build("segmentation", (4, 4), (8, 12), config=SMALL | {"attention_probs_dropout_prob": 0.1})
