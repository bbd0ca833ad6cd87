"""Verification of a Hugging Face model against itself, untouched and called as its own users call it.

Packed rows are right where nothing but attention mixes tokens, where attention goes through ``hf_attention``, and where
positions are what the model counts itself. None of that can be read off a class, so it is measured: a miniature of the
model (``hf_miniature``: the same class and settings, few and narrow layers, random weights) runs three documents, one
at a time, as transformers' users do, and packed and padded as ds4sci does. The full weights would say the same at the
price of several passes of a model that may not even fit on this device; a miniature takes a fraction of a second on
the CPU, alike on every rank and before any weights are sharded. It is thrown away, so nothing that a model
remembers from a call (BigBird switches to full attention after a short row) reaches the model that is trained.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ds4sci.models import hf_miniature
from ds4sci.types import IGNORE_INDEX, LanguageBatch

LARGEST = 2**25
"""Weights of a small copy; several of it are held at a time."""

LENGTHS = (20, 90, 33)
"""Tokens of the three documents: the first is shorter than ``hf_miniature.WINDOW``, the others are longer."""


@dataclass(frozen=True)
class CallConvention:
    """How a model is called so that its numbers are those of the untouched model.

    attention       ``ds4sci``: rows of several documents, positions given. ``own``: one document a row, the model's own
                    attention with an attention mask, its own positions
    first_position  of a document's first token: 0, or padding_idx + 1 (RoBERTa, ESM-1b)
    longest         the most tokens of a document for which that holds, None = any
    limit           the config key behind ``longest``
    shardable       whether rows can be spread over ranks: only attention mixes tokens, and positions are those given
    """

    attention: Literal["ds4sci", "own"] = "ds4sci"
    first_position: int = 0
    longest: int | None = None
    limit: str = ""
    shardable: bool = True


PACKED = CallConvention()


@dataclass(frozen=True)
class Subject:
    """What is verified.

    config  of the model; never changed
    kind    ``masked_lm``, ``causal_lm`` or ``token_labels``
    make    config → new model, untouched
    wrap    (model, convention) → ``LanguageModel``
    adapt   model → model with adapters, or None
    """

    config: Any
    kind: str
    make: Callable[[Any], Any]
    wrap: Callable[[Any, CallConvention], Any]
    adapt: Callable[[Any], Any] | None = None


_known: dict[str, CallConvention | str] = {}


def verify(subject: Subject, *, longest: int | None, packing: bool, key: str = "") -> CallConvention:
    """The convention by which the model of ``subject`` gives its own numbers.

    longest  the most tokens of a document that are planned; None: any number
    packing  whether rows are to hold several documents
    key      what besides config and kind tells subjects apart, for the results of one process to be kept

    Raises ValueError with the reason where there is none, or only one that packs nothing and ``packing`` is asked for.
    """
    name = f"{longest} {packing} {key} {_identity(subject)}"
    if name not in _known:
        try:
            with _preserve_rng_state():
                _known[name] = _verify(subject, longest, packing)
        except ValueError as error:
            _known[name] = str(error)
    found = _known[name]
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _identity(subject: Subject) -> str:
    text = json.dumps(subject.config.to_dict(), sort_keys=True, default=str)
    return f"{type(subject.config).__name__} {subject.kind} {text}"


@contextlib.contextmanager
def _preserve_rng_state() -> Iterator[None]:
    """Random states of torch, numpy and Python, default type and logging are afterwards what they were."""
    from transformers.utils import logging

    verbosity, python = logging.get_verbosity(), random.getstate()
    numbers = np.random.get_state()  # noqa: NPY002  (BigBird seeds the global one)
    kind = torch.get_default_dtype()
    logging.set_verbosity(logging.CRITICAL)
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.device("cpu"):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(kind)
        logging.set_verbosity(verbosity)
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(python)


def _verify(subject: Subject, longest: int | None, packing: bool) -> CallConvention:
    first = _trial(subject, None)
    first.check_own(longest)
    trials = [first]
    if longest is not None and any(size >= longest for size in hf_miniature.windows(subject.config).values()):
        trials.append(_trial(subject, longest))
        # windows that no document reaches are no windows; the result then holds up to the smallest of them
    reasons: list[str] = []
    for trial in trials:
        for convention in trial.packed_conventions():
            reason = trial.why_not(convention)
            if reason is None:
                convention = replace(convention, shardable=trial.shardable(convention))
                if convention.first_position:  # the miniature's vocabulary is smaller, and so may be its padding_idx
                    own = subject.config.get_text_config().pad_token_id
                    convention = replace(convention, first_position=own + 1)
                return _bounded(convention, trial)
            reasons.append(reason)
    packed = min(reasons, key=_vagueness)
    for trial in trials:
        convention = CallConvention("own", shardable=False)
        reason = trial.why_not(convention)
        if reason is None and not packing:
            return _bounded(convention, trial)
        if reason is None:
            raise ValueError(
                f"{first.name}: in packed rows it does not give its own numbers: {packed}. "
                f"Set data.packing = false: with one document a row it does, by attention of its own"
                + (_shorter(subject) if "window" in packed else "")
            )
    raise ValueError(
        f"{first.name}: neither packed nor padded rows give its own numbers. Packed: {packed}. "
        f"Padded, with its own attention: {reason}"
    )


_trials: dict[str, _Trial] = {}


def _trial(subject: Subject, longest: int | None) -> _Trial:
    """A trial of ``subject``; the last few are kept, for a run that builds its model again."""
    name = f"{longest} {_identity(subject)}"
    if name not in _trials:
        while len(_trials) > 3:
            del _trials[next(iter(_trials))]
        _trials[name] = _Trial.of(subject, longest)
    return replace(_trials[name], wrap=subject.wrap, adapt=subject.adapt)


def _shorter(subject: Subject) -> str:
    """Advice where the config names windows."""
    found = {key: size for key, size in hf_miniature.windows(subject.config).items() if "window" in key}
    named = ", ".join(f"{key} = {size}" for key, size in found.items())
    return f"; or make documents no longer than its window ({named})" if named else ""


def _vagueness(reason: str) -> int:
    """Of several conventions that fail, the reason that says most."""
    return 0 if reason.startswith("adapters") else 2 if reason.startswith("logits") else 1


def _bounded(convention: CallConvention, trial: _Trial) -> CallConvention:
    """``convention`` with the longest document that it holds for."""
    limits = dict(trial.table)
    if trial.longest is not None:
        limits |= {key: size for key, size in hf_miniature.windows(trial.config).items() if size >= trial.longest}
    if not limits:
        return convention
    key = min(limits, key=lambda name: limits[name])
    return replace(convention, longest=limits[key], limit=key)


@dataclass
class _Trial:
    """A miniature, three documents and what the untouched model makes of each alone.

    logits   fp32 [n, v] of each document
    error    how far fp32 is from fp64 there; what is to be equal may differ by 10 times as much
    table    {key: tokens} where the model has positions for so many only
    """

    config: Any
    kind: str
    model: Any
    wrap: Callable[[Any, CallConvention], Any]
    adapt: Callable[[Any], Any] | None
    longest: int | None
    documents: list[Tensor]
    logits: list[Tensor]
    error: float
    table: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return type(self.model).__name__

    @classmethod
    def of(cls, subject: Subject, longest: int | None) -> _Trial:
        reasons = []
        unbounded = longest if longest is not None else 2**60
        for shrink in (hf_miniature.miniature, hf_miniature.reduced_layers):
            try:
                small = shrink(subject.config, unbounded)
                check_size(subject.make, small)
                table = _table(subject, shrink)
                if table and longest is None:
                    hf_miniature.set_positions(small, hf_miniature.BEYOND)
                model = random_weights(subject.make(small)).eval()
                documents = _documents(model.config, subject.kind)
                logits = [_own(model, one) for one in documents]
            except (Exception, SystemExit) as error:  # any failure of a foreign model: the next way, or its reason
                reasons.append(f"{type(error).__name__}: {error}".split("\n")[0])
                continue
            return cls(
                subject.config, subject.kind, model, subject.wrap, subject.adapt, longest, documents, logits,
                _error(model, documents, logits), table,
            )  # fmt: skip
        raise ValueError(
            f"model_type {subject.config.model_type!r}: no small copy of it runs, so that it cannot be verified: "
            + "; with full widths, ".join(reasons)
        )

    @property
    def padding_index(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "pad_token_id", None)

    def packed_conventions(self) -> list[CallConvention]:
        found = [CallConvention()]
        if self.padding_index is not None:
            found.append(CallConvention(first_position=self.padding_index + 1))
        return found

    def check_own(self, longest: int | None) -> None:
        """Raises ValueError where the untouched model is not what the task takes it for: its loss is more than the
        cross entropy of labels, a causal model sees what it is to predict, or it has no positions for the documents."""
        for key, size in self.table.items():
            if longest is not None and longest > size:
                raise ValueError(
                    f"{self.name} has positions for {size} tokens ({key}); the run asks for documents of {longest}: "
                    "make data.phases.length (data.length) that short"
                )
        document, logits = self.documents[1], self.logits[1]
        if logits.ndim != 2 or logits.shape[0] != document.shape[0]:
            raise ValueError(f"{self.name} gives no logits for each token; they came as {tuple(logits.shape)}")
        if self.kind == "causal_lm":
            changed = document.clone()
            changed[-5:] = self.documents[2][:5]
            if self.differ(_own(self.model, changed)[:-5], logits[:-5]):
                raise ValueError(
                    f"{self.name} sees the tokens that it is to predict: with this config its attention is not "
                    "causal (is_decoder = true makes it so where the config has that key)"
                )
        labels = document.remainder(logits.shape[-1]) if self.kind == "token_labels" else document
        try:
            theirs = copy.deepcopy(self.model)(input_ids=document[None], labels=labels[None]).loss
        except Exception as error:
            raise ValueError(f"{self.name} computes no loss: {type(error).__name__}: {error}") from None
        pairs = [(logits, labels)]
        if self.kind == "causal_lm":  # some shift the labels themselves, some leave that to the caller
            pairs.insert(0, (logits[:-1], labels[1:]))
        possible = [float(nn.functional.cross_entropy(a.double(), b)) for a, b in pairs]
        if theirs is None or not any(abs(float(theirs) - one) <= 1e-5 * one for one in possible):
            keys = hf_miniature.loss_keys(self.config)
            named = ", ".join(f"{key} = {value}" for key, value in keys.items())
            raise ValueError(
                f"{self.name}: its own loss is not the cross entropy of the next or masked token "
                f"({theirs} against {possible[0]:.4f}), so that ds4sci would train something else"
                + (f"; its config says {named}, which model.overrides can switch off" if named else "")
            )

    def differ(self, found: Tensor, wanted: Tensor, allowed: float = 1e-5) -> float:
        """The largest difference over the largest logit, 0 where it is rounding."""
        scale = max(float(wanted.abs().max()), 1e-6)
        off = float((found.float() - wanted).abs().max())
        if not off <= 10 * self.error + allowed * scale:
            return off / scale if off == off else float("inf")
        return 0.0

    def why_not(self, convention: CallConvention) -> str | None:
        """Why ``convention`` does not give the numbers of the untouched model, or None."""
        try:
            model = self.wrap(copy.deepcopy(self.model), convention)
            if convention.attention == "own":  # a short row first: what comes after may not depend on it
                rows = [[[0]], [[0], [1], [2]]]
            else:
                rows = [[[0, 1, 2]], [[1], [0, 2], [2]]]
            for row in rows:
                reason = self._compare(model, row, self.logits)
                if reason:
                    return reason
            if convention.attention == "ds4sci":
                model.train()
                model.hidden(self.batch([[0]]))  # refuses dropout of attention weights
            elif not _finite_gradients(model, self.batch([[0], [1]])):
                return "gradients of rows with padding are not finite"
            if self.adapt is not None:
                return self._compare_adapted(convention, rows[0])
        except ValueError as error:
            return str(error)
        except Exception as error:  # any failure of a foreign model
            return f"it fails there with {type(error).__name__}: {error}".split("\n")[0]
        return None

    def _compare(self, model: Any, rows: list[list[int]], wanted: list[Tensor], allowed: float = 1e-5) -> str | None:
        batch = self.batch(rows)
        model.eval()
        with torch.no_grad():
            found = model.logits(batch).flatten(0, 1)
        numbers = [number for row in rows for number in row]
        for number, (start, stop) in zip(numbers, batch.doc_spans.tolist(), strict=True):
            off = self.differ(found[start:stop], wanted[number], allowed)
            if off:
                how = "beside others" if max(map(len, rows)) > 1 else "in a row with padding"
                return f"logits of a document {how} are {off:.1g} (relative) from those of it alone"
        return None

    def _compare_adapted(self, convention: CallConvention, rows: list[list[int]]) -> str | None:
        """That adapters have all of their effect: layers whose weights are read rather than called have none."""
        assert self.adapt is not None
        adapted = self.adapt(copy.deepcopy(self.model))
        random_weights(adapted, only="lora_")
        merged = copy.deepcopy(adapted).merge_and_unload().eval()
        wanted = [_own(merged, one) for one in self.documents]
        if not any(self.differ(one, plain, 1e-3) for one, plain in zip(wanted, self.logits, strict=True)):
            return "adapters (model.lora) do not change the logits: name other modules in model.lora.target_modules"
        # merged weights are rounded anew; an adapter without effect is off by far more
        reason = self._compare(self.wrap(adapted, convention), rows, wanted, allowed=1e-3)
        return f"adapters (model.lora) have not the effect of the weights they stand for: {reason}" if reason else None

    def shardable(self, convention: CallConvention) -> bool:
        """Whether nothing but attention mixes tokens, and positions come from outside."""
        model = self.wrap(copy.deepcopy(self.model), convention).eval()
        batch = self.batch([[1]])
        n = batch.input_ids.shape[1]
        alone = replace(batch, doc_spans=torch.arange(n).view(-1, 1) + torch.tensor([[0, 1]]))
        changed = alone.input_ids.clone()
        changed[0, n // 2] = changed[0, 0]
        with torch.no_grad():
            one, other = model.hidden(alone)[0], model.hidden(replace(alone, input_ids=changed))[0]
            moved = model.hidden(replace(batch, position_ids=batch.position_ids * 3))[0]
            still = model.hidden(batch)[0]
        same = (one - other).abs().amax(-1) <= 1e-4 * one.abs().max()
        same[n // 2] = True
        return bool(same.all()) and not torch.allclose(moved, still, rtol=1e-4, atol=1e-5)

    def batch(self, rows: list[list[int]]) -> LanguageBatch:
        """Rows of documents by number, padded to the longest and a little more."""
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
        none = torch.full_like(ids, IGNORE_INDEX)
        return LanguageBatch(
            tuple(f"document {i}" for row in rows for i in row), ids, none, torch.zeros(ids.shape), positions,
            torch.tensor(doc_spans), torch.zeros(ids.shape, dtype=torch.bool), sum(b - a for a, b in doc_spans),
        )  # fmt: skip


@torch.no_grad()
def _own(model: Any, document: Tensor) -> Tensor:
    """Logits ``[n, v]`` of the untouched model, called as its users do; by a copy, for some models remember calls."""
    return copy.deepcopy(model)(input_ids=document[None]).logits[0].float()


def _finite_gradients(model: Any, batch: LanguageBatch) -> bool:
    """Whether NaN in padding, which a softmax over no key makes, stays out of the gradients."""
    model.zero_grad()
    logits = model.logits(batch).flatten(0, 1)
    torch.cat([logits[a:b] for a, b in batch.doc_spans.tolist()]).float().square().mean().backward()
    return all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def random_weights(model: Any, *, only: str = "") -> Any:
    """``model`` with weights large enough that no layer's effect is lost in rounding (fresh ones are often 0 or 0.02).

    only  parameters whose name has this
    """
    for name, parameter in model.named_parameters():
        if only not in name or not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            parameter.normal_(0, min(0.3, parameter.shape[-1] ** -0.5))
        else:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def _documents(config: Any, kind: str) -> list[Tensor]:
    """Random tokens without special ones, but for masks of a masked model."""
    text = config.get_text_config()
    parts = (config, text)
    special = {v for part in parts for k, v in vars(part).items() if k.endswith("_token_id") and type(v) is int}
    plain = torch.tensor([i for i in range(min(text.vocab_size, hf_miniature.VOCABULARY)) if i not in special])
    found = [plain[torch.randint(len(plain), (n,))] for n in LENGTHS]
    mask = getattr(text, "mask_token_id", None)
    if kind == "masked_lm" and type(mask) is int:
        for share, one in enumerate(found):
            one[:: 5 + share] = mask
    return found


def _error(model: Any, documents: list[Tensor], logits: list[Tensor]) -> float:
    """How far fp32 logits are from fp64; 0 where the model has no fp64."""
    try:
        wide = copy.deepcopy(model).double()
        exact = [_own(wide, one) for one in documents]
    except Exception:
        return 0.0
    return max(float((a - b).abs().max()) for a, b in zip(exact, logits, strict=True))


def check_size(make: Callable[[Any], Any], config: Any) -> None:
    """Raises ValueError for a model too large to be made for a trial."""
    with torch.device("meta"):
        size = sum(p.numel() for p in make(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} weights are too many for a trial")


def _table(subject: Subject, shrink: Callable[..., Any]) -> dict[str, int]:
    """{config key: tokens} where the untouched model fails beyond the positions that its config names."""
    key, size = hf_miniature.position_table(subject.config) or ("", 0)
    if not key:
        return {}
    small = shrink(subject.config)
    few = LENGTHS[0]
    hf_miniature.set_positions(small, few)

    def runs(tokens: int) -> bool:
        try:
            _own(model, document[:tokens])
        except Exception:
            return False
        return True

    model = subject.make(small).eval()
    document = _documents(model.config, subject.kind)[1]
    if runs(len(document)):
        return {}
    padding = getattr(small.get_text_config(), "pad_token_id", None)
    own = getattr(subject.config.get_text_config(), "pad_token_id", None)
    ahead = next((n for n in range((padding or 0) + 3) if runs(few - n)), None)
    if ahead is None:
        return {}
    return {key: size - (ahead if padding is None or own is None or ahead < padding else ahead - padding + own)}
