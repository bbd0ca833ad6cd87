"""Low-rank adapters of a structure model: merged weights, gradients, weights of a file, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ds4sci.models.fold import FoldModel
from ds4sci.models.published_weights import export_openfold, read_for, read_weights, write_weights
from ds4sci.nn.linear import Linear
from ds4sci.nn.low_rank import LowRankConfig, LowRankLinear, is_adapter, merge_low_rank
from ds4sci.nn.quantized_weights import quantize_weights
from ds4sci.types import Batch
from tests.support.small_fold import SMALL
from tests.support.structure_batch import crops

LORA = LowRankConfig(rank=3, alpha=6.0, train=("plddt.*",))
CONFIG = SMALL.model_copy(update={"lora": LORA, "heads": ("masked_msa", "experimentally_resolved")})


@pytest.fixture
def batch() -> Batch:
    return crops(20, 15)


@pytest.fixture
def adapted() -> FoldModel:
    """A model whose last layers and adapters are not 0."""
    torch.manual_seed(0)
    model = FoldModel(CONFIG).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def without_adapters(model: FoldModel) -> FoldModel:
    """The same model with merged weights in plain layers."""
    plain = FoldModel(CONFIG.model_copy(update={"lora": None})).to(next(model.parameters()).dtype)
    layers = dict(model.named_modules())
    plain.load_state_dict({n: x for n, x in model.state_dict().items() if not is_adapter(n)})
    with torch.no_grad():
        for name, layer in plain.named_modules():
            own = layers[name]
            if isinstance(own, LowRankLinear):
                layer.weight += 2.0 * own.lora_b @ own.lora_a
    return plain


def loss_of(model: FoldModel, batch: Batch) -> torch.Tensor:
    out = model(batch)
    return out.atom37.square().mean() + out.distogram_logits.square().mean() + out.plddt_logits.square().mean()


def test_outputs_and_gradients_are_those_of_merged_weights(adapted: FoldModel, batch: Batch) -> None:
    """By the chain rule, those of A and B follow from the gradient G of W': (alpha / rank) Bᵀ G and … G Aᵀ."""
    plain = without_adapters(adapted)
    losses = [loss_of(model, batch) for model in (adapted, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-10)
    for loss in losses:
        loss.backward()
    count = 0
    for name, parameter in adapted.named_parameters():
        layer, _, last = name.rpartition(".")
        if not is_adapter(name):
            assert (parameter.grad is not None) == name.startswith("plddt."), name
            continue
        grad, own = plain.get_parameter(f"{layer}.weight").grad, adapted.get_submodule(layer)
        assert grad is not None
        exact = 2.0 * (own.lora_b.T @ grad if last == "lora_a" else grad @ own.lora_a.T)
        assert (parameter.grad - exact).norm() <= 1e-8 * exact.norm() + 1e-12, name
        count += 1
    assert count > 100
    assert all(layer.startswith(("evoformer.", "structure_module.")) for layer, m in adapted.named_modules()
               if isinstance(m, LowRankLinear))  # fmt: skip


def test_merged_layers_are_plain_layers(adapted: FoldModel, batch: Batch) -> None:
    names = {name for name, _ in adapted.named_parameters() if not is_adapter(name)}
    with torch.no_grad():
        before = loss_of(adapted, batch)
        merge_low_rank(adapted)
        assert loss_of(adapted, batch).item() == pytest.approx(before.item(), rel=1e-10)
    assert dict(adapted.named_parameters()).keys() == names
    assert not any(isinstance(module, LowRankLinear) for module in adapted.modules())


def test_training_starts_from_the_weights_of_a_file(adapted: FoldModel, batch: Batch, tmp_path: Path) -> None:
    start = without_adapters(adapted).float()
    write_weights(tmp_path / "start.pt", dict(start.state_dict()), "openfold", "")
    model = FoldModel(CONFIG)
    given = read_for(model, tmp_path / "start.pt")
    assert not any(is_adapter(name) for name in given.fit.loaded)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name in given.fit.loaded:
            own[name].copy_(given.tensors[name])
        assert torch.equal(loss_of(model, batch), loss_of(start, batch))


@pytest.mark.filterwarnings("ignore:openfold")
def test_an_exported_model_has_merged_weights(adapted: FoldModel, tmp_path: Path) -> None:
    export_openfold(adapted, tmp_path / "openfold.pt")
    exported, plain = read_weights(tmp_path / "openfold.pt").tensors, without_adapters(adapted).state_dict()
    assert exported.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-12, atol=1e-12)


def test_compressed_weights_are_those_of_the_merged_layers(adapted: FoldModel) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed (the extra quantize)")
    adapted = adapted.float()
    plain = without_adapters(adapted)
    for model in (adapted, plain):
        quantize_weights(model, "int8")
    name = "evoformer.blocks.0.msa.transition.linear_1"
    torch.testing.assert_close(adapted.get_submodule(name).weight, plain.get_submodule(name).weight)


def test_the_sum_is_rounded_once() -> None:
    layer = Linear(64, 48).bfloat16()
    own = LowRankLinear.adapt(layer, 4, 8.0)
    own.lora_b.data.normal_()
    w, a, b = layer._parameters["weight"], own.lora_a, own.lora_b
    exact = w.double() + 2.0 * b.double() @ a.double()
    assert own.weight.dtype == torch.bfloat16
    assert ((own.weight.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-9).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ("trunk.*",)}, r"model\.lora\.target_modules: 'trunk\.\*' matches no linear layer"),
        ({"train": ("heads.tm.*",)}, r"model\.lora\.train: 'heads\.tm\.\*' matches no parameter"),
    ],
)
def test_patterns_that_match_nothing_are_refused(settings: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FoldModel(CONFIG.model_copy(update={"lora": LowRankConfig(**settings)}))
