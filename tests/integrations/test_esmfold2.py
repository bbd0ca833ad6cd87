"""ESMFold2 of transformers, patched, beside itself: pair updates, MSA encoder, diffusion layers, the whole model.

Norms' weights stay fp32 in bf16, as ``from_pretrained`` keeps them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import nn

from tests.support.patched_model import WideTorch, check_accuracy, check_autocast_dtypes

esm2 = pytest.importorskip("transformers.models.esmfold2.modeling_esmfold2")
transformers = pytest.importorskip("transformers")
Leaf = Callable[[torch.Tensor], torch.Tensor]


def config(**changes: object) -> object:
    atoms = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16,
        "num_spatial_rope_pairs_per_axis": 1, "num_uid_rope_pairs": 2,
    }  # fmt: skip
    diffusion = {
        "hidden_size": 32, "fourier_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
        "pair_intermediate_size": 40, "atom_encoder": {**atoms, "output_dim": 32},
    }  # fmt: skip
    esmc = {
        "model_type": "esmc", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48,
    }  # fmt: skip
    return transformers.EsmFold2Config(
        hidden_size=24, pairwise_hidden_size=32, single_inputs_size=24 + 67, pair_transition_intermediate_size=48,
        sliding_window=8, folding_trunk_num_hidden_layers=1, parcae_num_coda_layers=1, num_loops=1,
        atom_encoder={**atoms, "output_dim": 24}, structure_head={"diffusion_module": diffusion},
        confidence_head={"num_hidden_layers": 1},
        msa_encoder={"hidden_size": 16, "outer_hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "head_dim": 8, "intermediate_size": 24},
        lm_encoder={"num_hidden_layers": 1, "lm_dropout": 0.0}, esmc_config=esmc, **changes,
    )  # fmt: skip


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(n: int) -> torch.Tensor:
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[1, n - 5 :] = False
    return mask


@contextlib.contextmanager
def widen(model: nn.Module) -> Iterator[None]:
    with mock.patch.object(esm2, "torch", WideTorch()), mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def to_bf16(model: nn.Module) -> None:
    model.bfloat16()
    for module in model.modules():
        if isinstance(module, esm2.EsmFold2LayerNorm):
            module.float()


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def check(
    model: nn.Module, call: Callable[[nn.Module, Leaf], list[torch.Tensor]], dtype: torch.dtype, draws: int = 3
) -> None:
    narrow = to_bf16 if dtype == torch.bfloat16 else lambda model: None
    check_accuracy(model.train(), call, narrow=narrow, widen=widen, dtype=dtype, draws=draws)


@DTYPES
@pytest.mark.parametrize("n", [17, 33])
def test_pair_updates(n: int, dtype: torch.dtype) -> None:
    stack = esm2.EsmFold2PairUpdateStack(config(chunk_size=8), 2)
    z, mask = normal(2, n, n, 32).to(dtype), padded(n).float()
    pair_mask = mask[:, :, None] * mask[:, None] if n == 17 else None
    check(stack, lambda model, leaf: [model(leaf(z), pair_attention_mask=pair_mask)], dtype)


class MsaLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([esm2.EsmFold2MSAEncoderLayer(config(), updates_msa=i == 0) for i in range(2)])

    def forward(self, msa: torch.Tensor, pair: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pair_mask = mask[:, :, 0].bool()
        pair_mask = pair_mask.unsqueeze(2) & pair_mask.unsqueeze(1)
        for layer in self.layers:
            msa, pair = layer(msa, pair, mask, pair_mask)
        return msa, pair


@DTYPES
def test_msa_layers(dtype: torch.dtype) -> None:
    n, rows = 17, 5
    msa, pair = normal(2, n, rows, 16).to(dtype), normal(2, n, n, 32, seed=1).to(dtype)
    mask = (torch.rand(2, n, rows, generator=torch.Generator().manual_seed(2)) > 0.2).float()
    mask[..., 0] = 1
    mask *= padded(n).unsqueeze(-1)
    check(MsaLayers(), lambda model, leaf: list(model(leaf(msa), leaf(pair), mask)), dtype)


@DTYPES
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_diffusion_layer(attention: str, dtype: torch.dtype) -> None:
    settings = config()
    settings._attn_implementation = attention
    layer = esm2.EsmFold2DiffusionLayer(settings)
    n = 33
    x, s, pair = normal(2, n, 32).to(dtype), normal(2, n, 32, seed=1).to(dtype), normal(2, n, n, 32, seed=2).to(dtype)

    def call(model: nn.Module, leaf: Leaf) -> list[torch.Tensor]:
        bias = model.compute_pair_bias(leaf(pair), padded(n))
        return [model(leaf(x), leaf(s), bias), bias.clamp(min=-100)]

    check(layer, call, dtype)


def test_dtypes_under_autocast() -> None:
    settings = config()
    model = nn.ModuleList([MsaLayers(), esm2.EsmFold2DiffusionLayer(settings)])
    assert len(check_autocast_dtypes(model)) == 6


def test_under_autocast() -> None:
    n, mask = 17, padded(17).float()
    z, pair_mask = normal(2, n, n, 32), mask[:, :, None] * mask[:, None]
    check_accuracy(
        esm2.EsmFold2PairUpdateStack(config(), 1),
        lambda model, leaf: [model(leaf(z), pair_attention_mask=pair_mask)], widen=widen, autocast=torch.bfloat16,
    )  # fmt: skip


def features() -> dict[str, torch.Tensor]:
    """Two proteins of the same composition, the second three residues shorter, with an alignment."""
    prepare = pytest.importorskip("transformers.models.esmfold2.protein_utils").prepare_protein_features
    one, other = (prepare(sequence) for sequence in ("MKTAYIAKQRQ", "QRQKAIYATKM"))
    found = {name: torch.cat([one[name], other[name]]) for name in one}
    found["attention_mask"][1, -3:] = False
    found["atom_attention_mask"][1] &= found["atom_to_token"][1] < 8
    generator = torch.Generator().manual_seed(0)
    found["msa"] = torch.randint(0, 20, (2, 3, 11), generator=generator)
    for name in ("has_deletion", "deletion_value"):
        found[name] = found[name].expand(2, 3, 11)
    found["msa_attention_mask"] = found["attention_mask"].unsqueeze(1).expand(2, 3, 11)
    return found


def test_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trunk, one denoising step, confidence head."""
    torch.manual_seed(2)  # buffers of the model are random
    model = esm2.EsmFold2Model(config())
    given = features()
    names = [field.name for field in dataclasses.fields(esm2.EsmFold2AtomInputs)]
    atoms = {name: given.pop(name) for name in names}
    index = given.pop("distogram_atom_idx")
    state, noisy = normal(2, 11, 11, 32), 16 * normal(2, atoms["ref_pos"].shape[1], 3)
    monkeypatch.setattr(esm2.EsmFold2Model, "_init_pair_state", lambda self, like: state.to(like.dtype))

    def call(model: nn.Module, leaf: Leaf) -> list[torch.Tensor]:
        wide = {k: leaf(v) if v.is_floating_point() else v for k, v in atoms.items()}
        trunk = model(**given, atom_inputs=esm2.EsmFold2AtomInputs(**wide), num_loops=1)
        mask = given["attention_mask"]
        conditioning = model.structure_head.prepare_conditioning(
            trunk.atom_inputs, trunk.pair_states, trunk.relative_position_encoding, trunk.single_inputs, mask
        )
        coords = model.structure_head(leaf(noisy), leaf(torch.tensor([9.0, 4.0])), conditioning)
        with torch.no_grad():  # it writes into what its own gradient would need
            scores = model.confidence_head(
                single_inputs=trunk.single_inputs, pair_states=trunk.pair_states, predicted_coords=noisy,
                distogram_atom_idx=index, attention_mask=mask, atom_to_token=trunk.atom_inputs.atom_to_token,
                atom_attention_mask=trunk.atom_inputs.atom_attention_mask, asym_id=given["asym_id"],
                mol_type=given["mol_type"], num_diffusion_samples=1,
                relative_position_encoding=trunk.relative_position_encoding,
                token_bonds_encoding=trunk.token_bonds_encoding,
            )  # fmt: skip
        return [trunk.distogram_logits, coords, scores["plddt_logits"], scores["pae_logits"]]

    check(model, call, torch.float32, draws=8)
