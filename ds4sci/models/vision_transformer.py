"""Vision transformer for images and volumes: the layers of transformers' ViT, unedited, on patches sharded over ranks.

The model embeds patches itself, in two or three dimensions, and calls the layers of ``ViTModel`` on them with ds4sci's
attention (``huggingface.attention``). Every rank of a sequence group has whole examples and computes its part of their
tokens; attention is that of Ulysses. For images, the weights are those of transformers' own ViT classes.
"""

from __future__ import annotations

import difflib
import json
import math
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from torch import Tensor, nn

from ds4sci.models.huggingface import attention, parts
from ds4sci.models.patches import grid_of, interpolate_positions, patchify, sine_positions
from ds4sci.nn import activation_memory
from ds4sci.nn.activation_budget import LayerStack
from ds4sci.parallel import axial
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.types import IGNORE_INDEX, ArrayBatch, ImageOutput

Head = Literal["masked_autoencoder", "segmentation", "classification"]
DESCRIPTION = "image_model.json"
"""File of an exported model: head, patch, size of the examples, channels and classes."""


class DecoderConfig(BaseModel):
    """``[model.decoder]``: the decoder of a masked autoencoder, a narrower and shallower ViT."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    hidden_size: int = Field(96, ge=4)
    """Width."""
    num_hidden_layers: int = Field(2, ge=1)
    """Layers."""
    num_attention_heads: int = Field(3, ge=1)
    """Attention heads."""


class Config(BaseModel):
    """``[model]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    head: Head = "segmentation"
    """``masked_autoencoder`` (pretraining without labels), ``segmentation`` (a class for each point) or
    ``classification`` (a class for each example)."""
    patch: tuple[int, ...] = Field((16, 16), min_length=2, max_length=3)
    """Shape of a patch, [y, x] or [z, y, x]; it divides that of the examples."""
    path: Path | None = None
    """Folder with the weights of the encoder: written by ``ds4sci export``, or for images a ViT of transformers. Its
    positions are interpolated to the grid of the examples. Without it, the weights are new."""
    load_weights: bool = True
    """Load the weights at ``path``. If false, only its architecture is used."""
    config: dict[str, Any] = {}
    """For new weights: keys of transformers' ``ViTConfig``, such as ``hidden_size`` and ``num_hidden_layers``."""
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Fraction of the patches that a masked autoencoder reconstructs."""
    normalize_targets: bool = True
    """Whether the targets of a masked autoencoder have mean 0 and variance 1 in each patch."""
    decoder: DecoderConfig = DecoderConfig()
    """Decoder of a masked autoencoder."""
    tile_size: int = Field(2048, ge=16)
    """Tokens that MLPs process at a time in recomputed layers."""


def vit_config(config: Config, channels: int, size: tuple[int, ...]) -> Any:
    """Return the ``ViTConfig`` of ``config`` for examples of ``size``.

    Raises ValueError for an unknown key, a folder without a ViT, and both ``path`` and ``config``.
    """
    from transformers import ViTConfig

    given = dict(config.config)
    if config.path is not None:
        if given:
            raise ValueError("[model] has both path and config: config is for new weights")
        try:
            given = json.loads((config.path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"model.path = {str(config.path)!r}: no readable config.json: {error}") from None
        if given.get("model_type") != "vit":
            raise ValueError(f"model.path = {str(config.path)!r}: model_type {given.get('model_type')!r}; expected vit")
        if given.get("num_channels", 3) != channels:
            raise ValueError(
                f"model.path = {str(config.path)!r}: for images of {given.get('num_channels', 3)} channels; the "
                f"examples have {channels}"
            )
    else:
        known = ViTConfig().to_dict()
        for key in given:
            if key not in known or key in ("image_size", "patch_size", "num_channels"):
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]}?" if near and near[0] != key else "; the task sets it"
                raise ValueError(f"model.config: ViTConfig has no key {key!r} to be set here{hint}")
    sizes = {"image_size": list(size), "patch_size": list(config.patch), "num_channels": channels}
    made = ViTConfig(**(given | sizes))
    if made.hidden_size % made.num_attention_heads:
        raise ValueError(
            f"model.config: hidden_size = {made.hidden_size} is no multiple of num_attention_heads = "
            f"{made.num_attention_heads}"
        )
    return made


class TokenEmbeddings(nn.Module):
    """Embedding of numbered tokens, 0 the class token and 1 + i the patch i, as ``ViTEmbeddings`` computes it."""

    def __init__(self, c_in: int, width: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.projection = nn.Linear(c_in, width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        positions = torch.cat((torch.zeros(1, width), sine_positions(grid, width)))
        self.position_embeddings = nn.Parameter(positions[None])

    def forward(self, patches: Tensor, index: Tensor) -> Tensor:
        """Embed the patches [b, s, c_in] at the tokens ``index`` [b, s]; −1 is padding, whose embedding is 0."""
        x = self.projection(patches)
        x = torch.where((index == 0).unsqueeze(-1), self.cls_token.to(x.dtype), x)
        x = x + nn.functional.embedding(index.clamp(min=0), self.position_embeddings[0]).to(x.dtype)
        return x * (index >= 0).unsqueeze(-1)


class DecoderEmbeddings(nn.Module):
    """Tokens of the decoder: encoded where a patch is visible, else the mask token, plus their positions."""

    def __init__(self, width: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        positions = torch.cat((torch.zeros(1, width), sine_positions(grid, width)))
        self.position_embeddings = nn.Parameter(positions[None])

    def forward(self, encoded: Tensor, slot: Tensor, index: Tensor) -> Tensor:
        """encoded [b, m, d]; slot [b, s]: place of each token in ``encoded``, or −1; index [b, s]: its number."""
        places = slot.clamp(min=0).unsqueeze(-1).expand(-1, -1, encoded.shape[-1])
        x = torch.where((slot < 0).unsqueeze(-1), self.mask_token.to(encoded.dtype), encoded.gather(1, places))
        x = x + nn.functional.embedding(index.clamp(min=0), self.position_embeddings[0]).to(x.dtype)
        return x * (index >= 0).unsqueeze(-1)


class Layers(nn.Module):
    """The layers and the last norm of a ``ViTModel``, on tokens that are sharded over the ranks of a group."""

    def __init__(self, config: Any, settings: Config) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel

        attention.register()
        # a ViT of one patch: its embeddings are not used, and those of a volume would not exist
        one_patch = ViTConfig(**(config.to_dict() | {"image_size": [1, 1], "patch_size": [1, 1]}))
        vit = ViTModel(one_patch, add_pooling_layer=False)
        vit.set_attn_implementation(attention.NAME)
        parts.tile_tokenwise_modules(vit, lambda: settings.tile_size if self._recomputes else None)
        self.layers: Any = vit.layers
        self.layernorm = vit.layernorm
        self.activations, self._recomputes = LayerStack("layers", len(self.layers)), False

    def forward(self, x: Tensor, tokens: int, group: SequenceGroup) -> Tensor:
        """x [b, s, c]: this rank's part of rows whose first ``tokens`` are real; the others are padding."""
        row = x.shape[1] * group.size
        starts = torch.arange(len(x)) * row
        layout = attention.Layout(torch.stack((starts, starts + tokens), dim=1), group)
        self.activations.group = group
        self._recomputes = self.training and self.activations.recomputes(x.shape[:2].numel())
        row_bytes = x.numel() * group.size * 4
        if self._recomputes and x.device.type == "cpu" and row_bytes >= activation_memory.MIN_TENSOR_BYTES:
            activation_memory.return_freed_tensors()
        plan = self.activations.plan(tuple(x.shape), self.layers, x.nbytes) if self._recomputes else None
        attention.set_checkpointing(self.layers, plan)
        with attention.use_layout(layout):
            for layer in self.layers:
                x = layer(x)
        return self.layernorm(x)


class VisionTransformer(nn.Module):
    """ViT that maps ``ArrayBatch`` to ``ImageOutput``.

    config    its settings
    vit       transformers' configuration
    channels  of the examples
    size      spatial shape of the examples
    classes   number of classes; 0 for a masked autoencoder
    group     ranks that the tokens of an example are sharded across; set before the first call
    """

    def __init__(self, config: Config, vit: Any, channels: int, size: tuple[int, ...], classes: int) -> None:
        """Raises ValueError if the patches do not divide the examples."""
        super().__init__()
        self.config, self.vit, self.channels, self.size, self.classes = config, vit, channels, size, classes
        self.group: SequenceGroup = SINGLE_RANK
        self.grid = grid_of(size, config.patch)
        points = math.prod(config.patch)
        self.embeddings = TokenEmbeddings(channels * points, vit.hidden_size, self.grid)
        self.encoder = Layers(vit, config)
        outputs = {"masked_autoencoder": channels * points, "segmentation": classes * points, "classification": classes}
        width = vit.hidden_size
        if config.head == "masked_autoencoder":
            width = config.decoder.hidden_size
            self.to_decoder = nn.Linear(vit.hidden_size, width)
            self.decoder_embeddings = DecoderEmbeddings(width, self.grid)
            narrow = config.decoder.model_dump() | {"intermediate_size": 4 * width}
            self.decoder = Layers(type(vit)(**(vit.to_dict() | narrow)), config)
        self.head = nn.Linear(width, outputs[config.head])
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def patches(self) -> int:
        """Patches of an example."""
        return math.prod(self.grid)

    def forward(self, batch: ArrayBatch) -> ImageOutput:
        patch = self.config.patch
        patches = patchify(batch.inputs.to(self.embeddings.projection.weight.dtype), patch)
        if self.config.head == "masked_autoencoder":
            return self._reconstruct(patches, batch.targets)
        hidden, index = self._encode(patches, self._all_tokens(patches))
        if self.config.head == "classification":
            # every rank calls the head, and the rank of the class token counts
            labels = batch.targets.reshape(-1, 1, 1)
            own = labels if self.group.rank == 0 else torch.full_like(labels, IGNORE_INDEX)
            return ImageOutput(self.head(hidden[:, :1]).unsqueeze(2), own, index[:, :1])
        labels = patchify(batch.targets.unsqueeze(1), patch)
        labels = _take(labels, index).masked_fill((index < 1).unsqueeze(-1), IGNORE_INDEX)
        logits = self.head(hidden).unflatten(-1, (self.classes, -1)).transpose(-1, -2)
        return ImageOutput(logits, labels, index)

    def hidden(self, batch: ArrayBatch) -> Tensor:
        """Last hidden states [b, s, c] of this rank's tokens: the class token, the patches, and padding."""
        patches = patchify(batch.inputs.to(self.embeddings.projection.weight.dtype), self.config.patch)
        return self._encode(patches, self._all_tokens(patches))[0]

    def _all_tokens(self, patches: Tensor) -> Tensor:
        return torch.arange(1 + patches.shape[1], device=patches.device).expand(len(patches), -1)

    def _padded(self, index: Tensor) -> Tensor:
        """Token numbers padded with −1 so that the ranks get equally many."""
        missing = -index.shape[1] % self.group.size
        return nn.functional.pad(index, (0, missing), value=-1)

    def _encode(self, patches: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of this rank's part of the tokens ``index`` [b, m], and the numbers of these tokens."""
        own = self.group.shard(self._padded(index))
        x = self.embeddings(_take(patches, own), own)
        return self.encoder(x, index.shape[1], self.group), own

    def _reconstruct(self, patches: Tensor, mask: Tensor) -> ImageOutput:
        """Masked autoencoder (He et al., arXiv 2111.06377): encode the visible patches, decode all of them.

        mask  [b, n], 1 = hidden; equally many in each example
        """
        hidden_count = int(mask[0].sum())
        order = torch.argsort(mask, dim=1, stable=True)  # visible patches first, in their order
        visible = nn.functional.pad(1 + order[:, : mask.shape[1] - hidden_count], (1, 0))  # and the class token
        encoded, _ = self._encode(patches, visible)
        ranges = axial.even_ranges(encoded.shape[1] * self.group.size, self.group.size)
        encoded = axial.gather(self.to_decoder(encoded), 1, ranges, self.group)
        every = self._all_tokens(patches)
        slot = torch.full_like(every, -1).scatter(1, visible, torch.arange(visible.shape[1], device=mask.device).expand(
            len(visible), -1))  # fmt: skip
        own, own_slot = (self.group.shard(self._padded(x)) for x in (every, slot))
        x = self.decoder(self.decoder_embeddings(encoded, own_slot, own), every.shape[1], self.group)
        targets = _take(patches, own)
        if self.config.normalize_targets:
            variance, mean = torch.var_mean(targets, dim=-1, keepdim=True, correction=0)
            targets = (targets - mean) / (variance + 1e-6).sqrt()
        is_masked = (own > 0) & (own_slot < 0)
        return ImageOutput(self.head(x), targets, torch.where(is_masked, own, 0))

    def flops(self, examples: int) -> float:
        """Floating-point operations of one training step, without recomputation: 6 N T + 12 L h d n² per row.

        N weights in matrices, T tokens, L layers, h heads of d channels, n tokens per row.
        """
        total = 0.0
        masked = self.config.head == "masked_autoencoder"
        visible = round(self.patches * (1 - self.config.mask_ratio)) if masked else self.patches
        rows: list[tuple[Any, int]] = [(self.encoder, visible), *([(self.decoder, self.patches)] if masked else [])]
        for layers, tokens in rows:
            weights = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
            width = layers.layers[0].attention.q_proj.out_features
            total += 6.0 * weights * tokens + 12.0 * len(layers.layers) * width * tokens**2
        return total * examples


def _take(patches: Tensor, index: Tensor) -> Tensor:
    """Patches [b, n, c] of the tokens ``index`` [b, s]; those of the class token and of padding are any patch."""
    return patches.gather(1, (index - 1).clamp(min=0).unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def build(config: Config, *, channels: int, size: tuple[int, ...], classes: int, seed: int) -> VisionTransformer:
    """Return the model for examples [channels, *size], new weights initialised from ``seed``.

    Raises ValueError for settings that do not fit the examples or a folder whose weights do not fit.
    """
    vit = vit_config(config, channels, size)
    if vit.attention_probs_dropout_prob:
        raise ValueError("model.config.attention_probs_dropout_prob: ds4sci's attention has no dropout; set it to 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VisionTransformer(config, vit, channels, size, classes)
    if config.path is not None and config.load_weights:
        load_encoder(model, config.path)
    return model


def load_encoder(model: VisionTransformer, folder: Path) -> None:
    """Copy the weights of the encoder from ``folder``; positions are interpolated to the grid of ``model``.

    Raises ValueError, naming the weights, if they are missing or have another shape.
    """
    file = folder / "model.safetensors"
    try:
        stored = safetensors.torch.load_file(file)
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{file}: not a readable safetensors file beside config.json: {error}") from None
    stored = {name.removeprefix("vit."): value for name, value in stored.items()}
    axes = len(model.grid)
    sizes = [description[key] for key in ("image_size", "patch_size")]
    image, patch = ([one] * axes if isinstance(one, int) else list(one) for one in sizes)
    wrong = []
    with torch.no_grad():
        for name, own in encoder_weights(model).items():
            value = stored.get(name)
            if value is not None and name == "embeddings.position_embeddings":
                grid = grid_of(image, patch)
                value = interpolate_positions(value[0].float(), grid, model.grid)[None]
            elif value is not None and name == "embeddings.patch_embeddings.projection.weight":
                value = value.flatten(1) if list(value.shape[2:]) == list(model.config.patch) else value
            if value is None or value.shape != own.shape:
                shapes = "missing" if value is None else f"{list(value.shape)}, expected {list(own.shape)}"
                wrong.append(f"{name}: {shapes}")
            else:
                own.copy_(value)
    if wrong:
        raise ValueError(f"{file}: the weights do not fit the encoder: {'; '.join(wrong[:3])}")


def encoder_weights(model: VisionTransformer) -> dict[str, Tensor]:
    """Return the parameters of the encoder under transformers' names in ``ViTModel``; the projection is [c, c_in]."""
    own = {
        "embeddings.cls_token": model.embeddings.cls_token,
        "embeddings.position_embeddings": model.embeddings.position_embeddings,
        "embeddings.patch_embeddings.projection.weight": model.embeddings.projection.weight,
        "embeddings.patch_embeddings.projection.bias": model.embeddings.projection.bias,
    }
    return {**own, **dict(model.encoder.named_parameters())}


def export(model: VisionTransformer, folder: Path, classes: tuple[str, ...]) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``DESCRIPTION`` into ``folder``.

    Of images, the folder is that of ``ViTForImageClassification`` (classification) or ``ViTModel``; the kernel of a
    volume's projection is [c, channels, z, y, x]. Weights of another head are in ``head.safetensors``.
    """
    weights = {name: value.detach().float().cpu().contiguous() for name, value in encoder_weights(model).items()}
    kernel = "embeddings.patch_embeddings.projection.weight"
    weights[kernel] = weights[kernel].unflatten(1, (model.channels, *model.config.patch)).contiguous()
    is_classifier = model.config.head == "classification"
    vit: Any = type(model.vit)(**model.vit.to_dict())
    vit.architectures = ["ViTForImageClassification" if is_classifier else "ViTModel"]
    if classes:
        vit.id2label = dict(enumerate(classes))
        vit.label2id = {name: number for number, name in enumerate(classes)}
    head = {
        name: value.detach().float().cpu().contiguous()
        for name, value in model.named_parameters()
        if not name.startswith(("embeddings.", "encoder."))
    }
    if is_classifier:
        weights = {f"vit.{name}": value for name, value in weights.items()}
        weights |= {f"classifier.{name.removeprefix('head.')}": value for name, value in head.items()}
    else:
        safetensors.torch.save_file(head, folder / "head.safetensors", metadata={"format": "pt"})
    vit.save_pretrained(folder)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    description = {
        "head": model.config.head, "patch": list(model.config.patch), "size": list(model.size),
        "channels": model.channels, "classes": list(classes),
    }  # fmt: skip
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
