"""Patched ESMFold of transformers: blocks, trunk and whole model, with masks, dropout, autocast and in-place
updates."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from ds4sci.integrations import patch, unpatch
from tests.support.patched_model import BIG, WideTorch, check_accuracy, check_autocast_dtypes, randomize

esm = pytest.importorskip("transformers.models.esm.modeling_esmfold")
rigid_utils = pytest.importorskip("transformers.models.esm.openfold_utils.rigid_utils")
configuration = pytest.importorskip("transformers.models.esm.configuration_esm")
C_S, C_Z = 64, 32


def trunk_config(**changes: object) -> object:
    structure = configuration.StructureModuleConfig(
        sequence_dim=24, pairwise_dim=16, ipa_dim=8, resnet_dim=16, num_heads_ipa=2, num_blocks=2
    )
    given = {"num_blocks": 2, "dropout": 0.1, "chunk_size": 8} | changes
    return configuration.TrunkConfig(
        sequence_state_dim=C_S, pairwise_state_dim=C_Z, sequence_head_width=16, pairwise_head_width=8,
        structure_module=structure, **given,
    )  # fmt: skip


class Blocks(nn.Module):
    """The trunk without recycling and structure module."""

    def __init__(self, chunk_size: int | None = 8) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.blocks = nn.ModuleList([esm.EsmFoldTriangularSelfAttentionBlock(trunk_config()) for _ in range(2)])

    def forward(self, s: torch.Tensor, z: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self.blocks:
            s, z = block(s, z, mask=mask, chunk_size=self.chunk_size)
        return s, z


def padded(n: int) -> torch.Tensor:
    """Mask as from a tokenizer: int64, the second of two sequences is shorter."""
    mask = torch.ones(2, n, dtype=torch.int64)
    mask[1, n - 5 :] = 0
    return mask


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blocks_call(n: int, mask: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> Callable[..., object]:
    s, z = normal(2, n, C_S).to(dtype), normal(2, n, n, C_Z, seed=1).to(dtype)
    return lambda model, leaf: list(model(leaf(s), leaf(z), mask))


@contextlib.contextmanager
def widen(model: nn.Module) -> Iterator[None]:
    """The fp64 model with a mask value for fp64, and frames that do not cast to fp32."""
    for module in model.modules():
        if isinstance(module, esm.EsmFoldTriangleAttention):
            module.inf = BIG
    with mock.patch.object(rigid_utils, "torch", WideTorch()):
        yield


@pytest.mark.parametrize(
    ("n", "mask", "training", "dtype"),
    [
        (17, True, False, torch.float32),
        (33, False, True, torch.float32),
        (17, True, True, torch.bfloat16),
        (33, True, False, torch.bfloat16),
    ],
)
def test_blocks(n: int, mask: bool, training: bool, dtype: torch.dtype) -> None:
    model = Blocks().train(training)
    call = blocks_call(n, padded(n) if mask else None, dtype)
    check_accuracy(model, call, narrow=lambda m: m.to(dtype), widen=widen, dtype=dtype)


def test_blocks_under_autocast() -> None:
    model = Blocks(chunk_size=None).train()
    check_accuracy(model, blocks_call(17, padded(17)), widen=widen, autocast=torch.bfloat16)


def test_dtypes_under_autocast() -> None:
    assert len(check_autocast_dtypes(Blocks())) == 5


def test_multiplication_under_fp16_autocast_falls_back() -> None:
    module = esm.EsmFoldTriangleMultiplicativeUpdate(trunk_config())
    patch(module, verbose=False)
    with (
        torch.autocast("cpu", torch.float16),
        pytest.warns(RuntimeWarning, match="under autocast to float16 it accumulates in fp32"),
    ):
        module(normal(1, 5, 5, C_Z))


@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("n", [17, 8])
def test_multiplication_in_place(outgoing: bool, add: bool, n: int) -> None:
    module = randomize(esm.EsmFoldTriangleMultiplicativeUpdate(trunk_config(), _outgoing=outgoing))
    z, mask = normal(2, n, n, C_Z), padded(n)
    mask = mask.unsqueeze(2) * mask.unsqueeze(1)
    given = {"mask": mask, "inplace_safe": True, "_add_with_inplace": add, "_inplace_chunk_size": 4}
    wide = copy.deepcopy(module).double()
    with torch.no_grad():
        want, plain, got = z.double(), z.clone(), z.clone()
        assert wide(want, **given) is want
        module(plain, **given)
        patch(module, verbose=False)
        assert module(got, **given) is got
    assert (got - want).norm() <= 3 * (plain - want).norm()


def trunk_call() -> Callable[..., object]:
    s, z = normal(2, 17, C_S), normal(2, 17, 17, C_Z, seed=1)
    residues = torch.randint(0, 20, (2, 17), generator=torch.Generator().manual_seed(2))
    index = torch.arange(17).expand(2, 17)

    def call(model: nn.Module, leaf: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        out = model(leaf(s), leaf(z), residues, index, padded(17), no_recycles=0)
        return [out[name] for name in ("s_s", "s_z", "positions", "angles", "states")]

    return call


def test_trunk_with_structure_module() -> None:
    model = esm.EsmFoldingTrunk(trunk_config(dropout=0.0)).train()
    check_accuracy(model, trunk_call(), widen=widen)


VOCABULARY = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>"]


def whole() -> nn.Module:
    config = configuration.EsmConfig(
        vocab_size=len(VOCABULARY), vocab_list=VOCABULARY, mask_token_id=32, pad_token_id=1, hidden_size=32,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, position_embedding_type="rotary",
        is_folding_model=True, esmfold_config={"fp16_esm": False, "trunk": trunk_config(), "lddt_head_hid_dim": 16},
    )  # fmt: skip
    return randomize(esm.EsmForProteinFolding(config)).eval()


def fold(model: nn.Module) -> list[torch.Tensor]:
    sequence = torch.randint(0, 20, (2, 17), generator=torch.Generator().manual_seed(2))
    out = model(sequence, attention_mask=padded(17), num_recycles=0)
    names = ("s_s", "s_z", "positions", "distogram_logits", "lm_logits", "plddt", "ptm", "predicted_aligned_error")
    return [out[name] for name in names]


def test_whole_model() -> None:
    check_accuracy(whole(), lambda model, leaf: fold(model), widen=widen, draws=8)


def test_patched_model_is_saved_and_restored(tmp_path: Path) -> None:
    model = whole()
    before, keys = fold(model), list(model.state_dict())
    report = patch(model, verbose=False)
    assert str(report).splitlines()[0] == "ds4sci: 16 modules of EsmForProteinFolding are patched"
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    loaded = esm.EsmForProteinFolding.from_pretrained(tmp_path).eval()
    assert all(torch.equal(x, y) for x, y in zip(fold(loaded), before, strict=True))
    patch(loaded, verbose=False)
    assert all(torch.equal(x, y) for x, y in zip(fold(loaded), fold(model), strict=True))
    unpatch(model)
    assert all(torch.equal(x, y) for x, y in zip(fold(model), before, strict=True))


def test_attention_map_is_available() -> None:
    module = randomize(esm.EsmFoldSelfAttention(C_S, 4, 16, gated=True))
    x, bias = normal(2, 17, C_S).requires_grad_(), normal(2, 17, 17, 4, seed=1).requires_grad_()
    weight = normal(2, 17, 4, 17, seed=2)
    results = []
    for _ in range(2):
        _, attention = module(x, mask=padded(17), bias=bias)
        torch.mul(attention, weight).sum().backward()
        results.append([torch.mul(attention, 1).detach(), x.grad, bias.grad, module.proj.weight.grad])
        x.grad = bias.grad = module.proj.weight.grad = None
        patch(module, verbose=False)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


class HalvedOutput(esm.EsmFoldResidueMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


def test_subclass_that_overrides_forward_is_skipped() -> None:
    model = nn.ModuleList([HalvedOutput(C_Z, 2 * C_Z), esm.EsmFoldResidueMLP(C_Z, 2 * C_Z)])
    report = patch(model, verbose=False)
    assert report.skipped == {("HalvedOutput", "a subclass that overrides forward"): 1}
    assert report.replaced == {"EsmFoldResidueMLP": (1, ("transition",))}


def test_patching_nothing_raises_with_reasons() -> None:
    with pytest.raises(ValueError, match=r"\(1 HalvedOutput: a subclass that overrides forward\)\. Supported are"):
        patch(HalvedOutput(C_Z, C_Z))


def test_meta_model_is_patched() -> None:
    with torch.device("meta"):
        model = Blocks()
    assert len(patch(model, verbose=False).replaced) == 5
