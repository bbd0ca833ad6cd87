"""Comparison of a miniature Hugging Face model, called by a ``CallConvention``, with the original model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ds4sci.models.huggingface import miniature
from ds4sci.models.huggingface.call_convention import CallConvention, ModelFactory
from ds4sci.types import IGNORE_INDEX, LanguageBatch

MAX_PARAMETERS = 2**25
"""Largest miniature; several copies of it are in memory at the same time."""

LENGTHS = (20, 90, 33)
"""Tokens of the three documents: the first is shorter than ``miniature.SHORT_WINDOW``, the others are longer."""


@dataclass
class Comparison:
    """A miniature, three documents, and the logits of the original model for each document by itself.

    logits            fp32 [n, v] of each document
    rounding_error    largest difference between fp32 and fp64 logits; ten times as much counts as equal
    position_limits   {config key: tokens} if the model has positions for this many tokens only
    """

    config: Any
    kind: str
    model: Any
    wrap: Callable[[Any, CallConvention], Any]
    add_adapters: Callable[[Any], Any] | None
    longest: int | None
    documents: list[Tensor]
    logits: list[Tensor]
    rounding_error: float
    position_limits: dict[str, int] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        return type(self.model).__name__

    @classmethod
    def from_factory(cls, factory: ModelFactory, longest: int | None) -> Comparison:
        """A comparison for documents of at most ``longest`` tokens; None = any length.

        Raises ValueError if no miniature of the model runs.
        """
        reasons = []
        bound = longest if longest is not None else 2**60
        for shrink in (miniature.shrink, miniature.reduce_layers):
            try:
                config = shrink(factory.config, bound)
                check_size(factory.create, config)
                limits = _position_limits(factory, shrink)
                if limits and longest is None:
                    miniature.set_positions(config, miniature.LONG_WINDOW)
                model = randomize_weights(factory.create(config)).eval()
                documents = _random_documents(model.config, factory.kind)
                logits = [original_logits(model, document) for document in documents]
            except (Exception, SystemExit) as error:  # foreign code may raise anything: try the next, or report it
                reasons.append(f"{type(error).__name__}: {error}".split("\n")[0])
                continue
            return cls(
                factory.config, factory.kind, model, factory.wrap, factory.add_adapters, longest, documents, logits,
                _rounding_error(model, documents, logits), limits,
            )  # fmt: skip
        raise ValueError(
            f"model_type {factory.config.model_type!r}: no miniature of it runs, so it cannot be verified: "
            + "; with full widths, ".join(reasons)
        )

    @property
    def padding_index(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "pad_token_id", None)

    def packed_conventions(self) -> list[CallConvention]:
        """Candidates with packed rows, most common first."""
        found = [CallConvention()]
        if self.padding_index is not None:
            found.append(CallConvention(first_position=self.padding_index + 1))
        return found

    def check_original(self, longest: int | None) -> None:
        """Check that the original model fits the task.

        Raises ValueError if it has too few positions for the documents, computes no logits per token, computes a loss
        other than the cross entropy of the labels, or is causal by name but attends to later tokens.
        """
        for key, size in self.position_limits.items():
            if longest is not None and longest > size:
                raise ValueError(
                    f"{self.model_name} has positions for {size} tokens ({key}), but the run has documents of "
                    f"{longest}: reduce data.phases.length (data.length)"
                )
        document, logits = self.documents[1], self.logits[1]
        if logits.ndim != 2 or logits.shape[0] != document.shape[0]:
            raise ValueError(f"{self.model_name} does not compute logits for each token: got {tuple(logits.shape)}")
        if self.kind == "causal_lm":
            changed = document.clone()
            changed[-5:] = self.documents[2][:5]
            if self.difference(original_logits(self.model, changed)[:-5], logits[:-5]):
                raise ValueError(
                    f"{self.model_name} attends to the tokens that it predicts: with this config its attention is not "
                    "causal (set is_decoder = true if the config has that key)"
                )
        labels = document.remainder(logits.shape[-1]) if self.kind == "token_labels" else document
        try:
            loss = copy.deepcopy(self.model)(input_ids=document[None], labels=labels[None]).loss
        except Exception as error:
            raise ValueError(f"{self.model_name} computes no loss: {type(error).__name__}: {error}") from None
        pairs = [(logits, labels)]
        if self.kind == "causal_lm":  # some models shift the labels, others expect shifted ones
            pairs.insert(0, (logits[:-1], labels[1:]))
        expected = [float(nn.functional.cross_entropy(a.double(), b)) for a, b in pairs]
        if loss is None or not any(abs(float(loss) - one) <= 1e-5 * one for one in expected):
            settings = miniature.auxiliary_loss_settings(self.config)
            named = ", ".join(f"{key} = {value}" for key, value in settings.items())
            raise ValueError(
                f"{self.model_name}: its loss is not the cross entropy of the next or masked token "
                f"({loss} instead of {expected[0]:.4f}), so ds4sci would train a different objective"
                + (f"; its config has {named}, which model.overrides can switch off" if named else "")
            )

    def difference(self, found: Tensor, expected: Tensor, rtol: float = 1e-5) -> float:
        """The largest difference relative to the largest logit; 0 if it is within rounding error."""
        scale = max(float(expected.abs().max()), 1e-6)
        off = float((found.float() - expected).abs().max())
        if not off <= 10 * self.rounding_error + rtol * scale:
            return off / scale if off == off else float("inf")
        return 0.0

    def why_not(self, convention: CallConvention) -> str | None:
        """Why ``convention`` does not reproduce the output of the original model; None if it does."""
        try:
            model = self.wrap(copy.deepcopy(self.model), convention)
            if convention.attention == "original":  # a short row first: later calls must not depend on it
                batches = [[[0]], [[0], [1], [2]]]
            else:
                batches = [[[0, 1, 2]], [[1], [0, 2], [2]]]
            for rows in batches:
                reason = self._compare(model, rows, self.logits)
                if reason:
                    return reason
            if convention.attention == "packed":
                model.train()
                model.hidden(self.batch([[0]]))  # raises ValueError if attention weights have dropout
            elif not _has_finite_gradients(model, self.batch([[0], [1]])):
                return "gradients of padded rows are not finite"
            if self.add_adapters is not None:
                return self._compare_adapters(convention, batches[0])
        except ValueError as error:
            return str(error)
        except Exception as error:  # foreign code may raise anything
            return f"it fails with {type(error).__name__}: {error}".split("\n")[0]
        return None

    def _compare(self, model: Any, rows: list[list[int]], expected: list[Tensor], rtol: float = 1e-5) -> str | None:
        batch = self.batch(rows)
        model.eval()
        with torch.no_grad():
            found = model.logits(batch).flatten(0, 1)
        numbers = [number for row in rows for number in row]
        for number, (start, stop) in zip(numbers, batch.doc_spans.tolist(), strict=True):
            off = self.difference(found[start:stop], expected[number], rtol)
            if off:
                where = "a packed row" if max(map(len, rows)) > 1 else "a padded row"
                return f"logits in {where} differ by {off:.1g} (relative)"
        return None

    def _compare_adapters(self, convention: CallConvention, rows: list[list[int]]) -> str | None:
        """Compare LoRA adapters with merged weights: adapters of layers that are never called have no effect."""
        try:
            return self._adapter_difference(convention, rows)
        except ValueError:
            raise
        except Exception as error:  # such as peft on a linear layer whose forward returns a tuple
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            return (
                f"LoRA adapters (model.lora) do not work on some target layers ({reason}): name other layers in "
                "model.lora.target_modules"
            )

    def _adapter_difference(self, convention: CallConvention, rows: list[list[int]]) -> str | None:
        assert self.add_adapters is not None
        adapted = self.add_adapters(copy.deepcopy(self.model))
        randomize_weights(adapted, only="lora_")
        merged = copy.deepcopy(adapted).merge_and_unload().eval()
        expected = [original_logits(merged, document) for document in self.documents]
        if not any(self.difference(one, plain, 1e-3) for one, plain in zip(expected, self.logits, strict=True)):
            return "LoRA adapters (model.lora) do not change the logits: name other layers in model.lora.target_modules"
        # merged weights round differently; an adapter without effect differs by far more
        reason = self._compare(self.wrap(adapted, convention), rows, expected, rtol=1e-3)
        if reason is None:
            return None
        return (
            f"LoRA adapters (model.lora) differ from merged weights: {reason}; the model reads the weights of some "
            "target layers without calling them: name other layers in model.lora.target_modules"
        )

    def is_shardable(self, convention: CallConvention) -> bool:
        """Whether tokens are mixed in attention only, and the model uses the given position ids."""
        model = self.wrap(copy.deepcopy(self.model), convention).eval()
        batch = self.batch([[1]])
        n = batch.input_ids.shape[1]
        single_tokens = replace(batch, doc_spans=torch.arange(n).view(-1, 1) + torch.tensor([[0, 1]]))
        changed = single_tokens.input_ids.clone()
        changed[0, n // 2] = changed[0, 0]
        with torch.no_grad():
            one, other = model.hidden(single_tokens)[0], model.hidden(replace(single_tokens, input_ids=changed))[0]
            moved = model.hidden(replace(batch, position_ids=batch.position_ids * 3))[0]
            unmoved = model.hidden(batch)[0]
        same = (one - other).abs().amax(-1) <= 1e-4 * one.abs().max()
        same[n // 2] = True
        return bool(same.all()) and not torch.allclose(moved, unmoved, rtol=1e-4, atol=1e-5)

    def batch(self, rows: list[list[int]]) -> LanguageBatch:
        """Rows of documents, given by their numbers, padded to a multiple of 8 above the longest row."""
        n = -(-(max(sum(len(self.documents[i]) for i in row) for row in rows) + 1) // 8) * 8
        pad = self.padding_index or 0
        ids = torch.full((len(rows), n), pad)
        positions = torch.zeros_like(ids)
        doc_spans = []
        for number, row in enumerate(rows):
            at = 0
            for i in row:
                stop = at + len(self.documents[i])
                ids[number, at:stop] = self.documents[i]
                positions[number, at:stop] = torch.arange(stop - at)
                doc_spans.append((number * n + at, number * n + stop))
                at = stop
        no_labels = torch.full_like(ids, IGNORE_INDEX)
        return LanguageBatch(
            tuple(f"document {i}" for row in rows for i in row), ids, no_labels, torch.zeros(ids.shape), positions,
            torch.tensor(doc_spans), torch.zeros(ids.shape, dtype=torch.bool), sum(b - a for a, b in doc_spans),
        )  # fmt: skip


@torch.no_grad()
def original_logits(model: Any, document: Tensor) -> Tensor:
    """Logits ``[n, v]`` of the original model for one document. Calls a copy: some models keep state between calls."""
    return copy.deepcopy(model)(input_ids=document[None]).logits[0].float()


def _has_finite_gradients(model: Any, batch: LanguageBatch) -> bool:
    """Whether NaN in padding, from a softmax over no keys, stays out of the gradients."""
    model.zero_grad()
    logits = model.logits(batch).flatten(0, 1)
    torch.cat([logits[a:b] for a, b in batch.doc_spans.tolist()]).float().square().mean().backward()
    return all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def randomize_weights(model: Any, *, only: str = "") -> Any:
    """Give ``model`` random weights so large that the effect of every layer exceeds rounding. Changes it in place.

    Initial weights are often 0, or have a standard deviation of 0.02.

    only  substring of the names of the parameters to change
    """
    for name, parameter in model.named_parameters():
        if only not in name or not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            parameter.normal_(0, min(0.3, parameter.shape[-1] ** -0.5))
        else:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def _random_documents(config: Any, kind: str) -> list[Tensor]:
    """Random tokens without special tokens, except mask tokens in documents of a masked model."""
    text = config.get_text_config()
    parts = (config, text)
    special = {v for part in parts for k, v in vars(part).items() if k.endswith("_token_id") and type(v) is int}
    plain = torch.tensor([i for i in range(min(text.vocab_size, miniature.VOCABULARY)) if i not in special])
    documents = [plain[torch.randint(len(plain), (n,))] for n in LENGTHS]
    mask = getattr(text, "mask_token_id", None)
    if kind == "masked_lm" and type(mask) is int:
        for number, document in enumerate(documents):
            document[:: 5 + number] = mask
    return documents


def _rounding_error(model: Any, documents: list[Tensor], logits: list[Tensor]) -> float:
    """Largest difference between fp32 and fp64 logits; 0 if the model does not run in fp64."""
    try:
        wide = copy.deepcopy(model).double()
        exact = [original_logits(wide, document) for document in documents]
    except Exception:
        return 0.0
    return max(float((a - b).abs().max()) for a, b in zip(exact, logits, strict=True))


def check_size(create: Callable[[Any], Any], config: Any) -> None:
    """Raises ValueError if the model has more than ``MAX_PARAMETERS`` parameters. Allocates no memory for it."""
    with torch.device("meta"):
        size = sum(p.numel() for p in create(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size:,} parameters, more than {MAX_PARAMETERS:,}")


def _position_limits(factory: ModelFactory, shrink: Callable[..., Any]) -> dict[str, int]:
    """{config key: tokens} if the original model fails beyond the number of positions in its config; else empty."""
    key, size = miniature.position_table(factory.config) or ("", 0)
    if not key:
        return {}
    config = shrink(factory.config)
    few = LENGTHS[0]
    miniature.set_positions(config, few)

    def runs(tokens: int) -> bool:
        try:
            original_logits(model, document[:tokens])
        except Exception:
            return False
        return True

    model = factory.create(config).eval()
    document = _random_documents(model.config, factory.kind)[1]
    if runs(len(document)):
        return {}
    padding = getattr(config.get_text_config(), "pad_token_id", None)
    full_padding = getattr(factory.config.get_text_config(), "pad_token_id", None)
    # positions that hold no token, such as those up to padding_idx, which may differ between miniature and full model
    unused = next((n for n in range((padding or 0) + 3) if runs(few - n)), None)
    if unused is None:
        return {}
    if padding is None or full_padding is None or unused < padding:
        return {key: size - unused}
    return {key: size - (unused - padding + full_padding)}
