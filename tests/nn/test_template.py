"""Template embedder: absent templates, memory-saving paths, padding, gradients, and OpenFold's own modules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.models.fold import FoldModel
from ds4sci.nn.template import TemplateEmbedder, TemplatePairEmbedder, Templates, template_angles
from ds4sci.types import Batch, Record, in_double
from tests.support.fold_run import CHAINS
from tests.support.original_models import original
from tests.support.small_fold import SMALL
from tests.support.template_batches import with_templates

SIZES = {
    "blocks": 2, "c_t": 12, "heads_pair": 2, "d_pair": 4, "c_multiplication": 6, "transition_factor": 2,
    "d_attention": 3, "dropout": 0.0,
}  # fmt: skip
CONFIG = SMALL.model_copy(update={"template": type(SMALL.template).model_validate(SIZES)})
FIELDS = ("template_aatype", "template_positions", "template_atom_mask", "template_mask")


@pytest.fixture(scope="module")
def model() -> FoldModel:
    """A model in fp64 with random numbers in all parameters, also those that are initially zero."""
    torch.manual_seed(0)
    made = FoldModel(CONFIG).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return sorted(ChainSet.open(CHAINS), key=lambda record: len(record.sequence))[:2]


def make_batch(records: list[Record], counts: tuple[int, ...], most: int = 3, crop: int = 14) -> Batch:
    settings = FeatureConfig(masked_msa_probability=0.0, max_templates=most, subsample_templates=False)
    given = [with_templates(one, k) if k else one for one, k in zip(records, counts, strict=False)]
    features = [featurize(one, settings, np.random.default_rng(i), crop=crop + 2 * i) for i, one in enumerate(given)]
    return in_double(collate(features))


def outputs(model: FoldModel, batch: Batch) -> dict[str, Tensor]:
    names = ("pair", "msa0", "atom37", "distogram_logits", "plddt_logits", "masked_msa_logits")
    output = model(batch)
    return {name: getattr(output, name) for name in names}


def test_absent_templates_have_no_effect(model: FoldModel, records: list[Record]) -> None:
    """A batch with absent templates gives what the same model gives without any."""
    batch = make_batch(records, (0, 0))
    with torch.no_grad():
        absent = outputs(model, batch)
        none = outputs(model, replace(batch, **dict.fromkeys(FIELDS)))
        z = torch.randn(2, 16, 16, SMALL.c_z, dtype=torch.float64)
        templates = model.templates(batch)
        assert templates is not None
        mask = torch.ones(2, 16, 16, dtype=torch.bool)
        assert torch.equal(model.template_embedder(z, templates, mask), z)
    for name, expected in none.items():
        torch.testing.assert_close(absent[name], expected, rtol=1e-12, atol=1e-12)


def test_templates_of_one_chain_do_not_change_another(model: FoldModel, records: list[Record]) -> None:
    with torch.no_grad():
        both, first = (outputs(model, make_batch(records, counts)) for counts in ((2, 3), (2, 0)))
    for name, found in both.items():
        torch.testing.assert_close(found[0], first[name][0], rtol=1e-12, atol=1e-12)
        assert (found[1] - first[name][1]).abs().max() > 1e-6


def test_results_do_not_depend_on_padding(model: FoldModel, records: list[Record]) -> None:
    """More residues and more absent templates change nothing."""
    batch, alone = make_batch(records, (2, 3)), make_batch(records[:1], (2,), most=2)
    n = alone.aatype.shape[1]
    with torch.no_grad():
        padded, expected = outputs(model, batch), outputs(model, alone)
    for name in ("atom37", "plddt_logits", "msa0"):
        torch.testing.assert_close(padded[name][0, :n], expected[name][0], rtol=1e-10, atol=1e-10)


def test_updates_in_place_equal_those_with_gradient(model: FoldModel, records: list[Record]) -> None:
    batch = make_batch(records, (3, 1))
    with_gradient = outputs(model, batch)
    with torch.no_grad():
        in_place = outputs(model, batch)
    for name, expected in with_gradient.items():
        torch.testing.assert_close(in_place[name], expected.detach(), rtol=1e-10, atol=1e-10)


def test_all_parameters_get_gradients(model: FoldModel, records: list[Record]) -> None:
    model.zero_grad()
    found = outputs(model, make_batch(records, (3, 1)))
    sum(x.sin().sum() for x in found.values()).backward()
    for name, p in model.template_embedder.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0, name


def test_features_by_look_up_equal_those_of_the_layer() -> None:
    """The definition: 88 numbers per pair, and a linear layer."""
    torch.manual_seed(1)
    n = 11
    aatype, positions = torch.randint(22, (2, n)), 12 * torch.randn(2, n, 37, 3, dtype=torch.float64)
    aatype[:, 4] = 7
    mask = torch.rand(2, n, 37) > 0.1
    positions = positions * mask[..., None]
    embedder = TemplatePairEmbedder(5).double()
    beta = torch.where((aatype == 7)[..., None], positions[:, :, 1], positions[:, :, 3])
    has_beta = torch.where(aatype == 7, mask[:, :, 1], mask[:, :, 3])
    backbone = mask[:, :, :3].all(-1)
    features = torch.zeros(2, n, n, 88, dtype=torch.float64)
    edges = [3.25 + 1.25 * k for k in range(39)] + [float("inf")]
    for b in range(2):
        for i in range(n):
            for j in range(n):
                if not (backbone[b, i] and backbone[b, j]):
                    continue
                distance = float((beta[b, i] - beta[b, j]).norm())
                for k in range(39):
                    features[b, i, j, k] = edges[k] < distance < edges[k + 1]
                features[b, i, j, 39] = has_beta[b, i] & has_beta[b, j]
                features[b, i, j, 40 + aatype[b, j]] = 1
                features[b, i, j, 62 + aatype[b, i]] = 1
                features[b, i, j, 87] = 1
    torch.testing.assert_close(embedder(aatype, positions, mask), F.linear(features, embedder.weight, embedder.bias))


@pytest.mark.nightly
@pytest.mark.parametrize("unit_vectors", [False, True])
def test_equals_openfolds_modules(unit_vectors: bool, records: list[Record]) -> None:
    """fp64, random weights: angle features, pair features, pair stack, attention over templates."""
    batch = make_batch(records[:1], (3,))
    fields = [getattr(batch, name) for name in FIELDS]
    templates = Templates(*fields)
    made = TemplateEmbedder(10, 8, **SIZES, unit_vectors=unit_vectors, checkpoint_blocks=False).double()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(0.5 * torch.randn_like(p))

    feats, transforms = original("openfold.utils.feats"), original("openfold.data.data_transforms")
    given = {
        "template_aatype": templates.aatype, "template_all_atom_positions": templates.positions,
        "template_all_atom_mask": templates.atom_mask.double(), "template_mask": templates.mask.double(),
    }  # fmt: skip
    given = transforms.atom37_to_torsion_angles("template_")(given)
    angles = feats.build_template_angle_feat(given)
    mask = torsions = given["template_torsion_angles_mask"].bool()
    ours = template_angles(templates)
    assert torch.equal(ours[..., 50:].bool(), mask)
    # where an angle is missing, OpenFold's may be rounding noise
    seen = torch.cat([torch.ones_like(ours[..., :22]).bool(), *2 * [torsions.repeat_interleave(2, -1)], mask], -1)
    torch.testing.assert_close(ours[seen], angles[seen], rtol=1e-6, atol=1e-6)

    beta = feats.pseudo_beta_fn(given["template_aatype"], given["template_all_atom_positions"],
                                given["template_all_atom_mask"])  # fmt: skip
    given |= dict(zip(("template_pseudo_beta", "template_pseudo_beta_mask"), beta, strict=True))
    pairs = feats.build_template_pair_feat(given, 3.25, 50.75, 39, use_unit_vector=unit_vectors, eps=1e-6)
    linear = nn.Linear(88, 12).double()
    linear.load_state_dict(made.pair_embedder.state_dict())
    theirs = torch.stack([linear(pairs[:, k].double()) for k in range(3)], 1)
    found = torch.stack([made.pair_embedder(*(x[:, k] for x in templates[:3])) for k in range(3)], 1)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)

    module = original("openfold.model.template")
    stack = module.TemplatePairStack(12, 4, 6, 2, 2, 2, 0.0, False, False, None).double().eval()
    attention = module.TemplatePointwiseAttention(12, 8, 3, 4, 1e5).double().eval()
    from ds4sci.models.published_weights.translation import to_openfold

    state, unknown = to_openfold({f"template_embedder.{name}": p for name, p in made.state_dict().items()})
    assert not unknown
    for target, prefix in ((stack, "template_pair_stack."), (attention, "template_pointwise_att.")):
        start = f"template_embedder.{prefix}"
        target.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
    n = templates.aatype.shape[-1]
    z, pair_mask = torch.randn(1, n, n, 8, dtype=torch.float64), torch.ones(1, n, n, dtype=torch.bool)
    pair_mask[:, 3] = pair_mask[:, :, 3] = False
    t = stack(found, pair_mask[:, None].double(), chunk_size=None)
    expected = z + attention(t, z, templates.mask.double(), chunk_size=None)
    ours = made(z, templates, pair_mask)
    torch.testing.assert_close(ours[pair_mask], expected[pair_mask], rtol=1e-8, atol=1e-8)
