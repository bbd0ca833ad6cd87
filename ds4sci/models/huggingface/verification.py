"""Verification that a Hugging Face model gives its own output when ds4sci calls it.

Packed rows are correct if tokens are mixed in attention only, if attention goes through ``packed_attention``, and if
the position ids are those that the model would count itself. None of this can be read off a class, so it is measured on
a miniature: same class and settings, few narrow layers, random weights. The miniature runs three documents one at a
time, as users of transformers call it, and in packed and padded rows, as ds4sci calls it. This takes a fraction of a
second on the CPU, before any weights are sharded, and gives the same result on every rank. The full weights would give
the same answer at the cost of several forward passes of a model that may not even fit on one device. The miniature is
discarded, so that state which a model keeps between calls (BigBird switches to full attention after a short row) does
not reach the trained model.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ds4sci.models.huggingface import miniature
from ds4sci.models.huggingface.call_convention import CallConvention, ModelFactory
from ds4sci.models.huggingface.comparison import Comparison, randomize_weights
from ds4sci.types import LanguageBatch

_results: dict[str, CallConvention | str] = {}
_comparisons: dict[str, Comparison] = {}


def verify(factory: ModelFactory, *, longest: int | None, packing: bool, key: str = "") -> CallConvention:
    """The convention by which the model of ``factory`` gives its own output. Results are cached in the process.

    longest  tokens of the longest document; None = any length
    packing  whether rows hold several documents
    key      part of the cache key, for properties of the factory beyond config and kind

    Raises ValueError with the reason if there is no such convention, or if ``packing`` is set and only unpacked rows
    are correct.
    """
    name = f"{longest} {packing} {key} {_identity(factory)}"
    if name not in _results:
        try:
            with _preserve_global_state():
                _results[name] = _verify(factory, longest, packing)
        except ValueError as error:
            _results[name] = str(error)
    result = _results[name]
    if isinstance(result, str):
        raise ValueError(result)
    return result


@contextlib.contextmanager
def miniatures(factory: ModelFactory, convention: CallConvention) -> Iterator[tuple[Callable[[], Any], LanguageBatch]]:
    """Context manager with a function that returns equal miniature ``LanguageModel`` objects in evaluation mode, and a
    batch for them.

    Raises ValueError if no miniature of the model runs.
    """
    with _preserve_global_state():
        comparison = _comparison(factory, None)
        model = copy.deepcopy(comparison.model)
        if factory.add_adapters is not None:
            model = randomize_weights(factory.add_adapters(model), only="lora_")
        rows = [[0], [1], [2]] if convention.attention == "original" else [[0, 1, 2]]
        yield lambda: factory.wrap(copy.deepcopy(model), convention).eval(), comparison.batch(rows)


def _identity(factory: ModelFactory) -> str:
    text = json.dumps(factory.config.to_dict(), sort_keys=True, default=str)
    return f"{type(factory.config).__name__} {factory.kind} {text}"


@contextlib.contextmanager
def _preserve_global_state() -> Iterator[None]:
    """Restore the random states of torch, numpy and Python, the default dtype and the log level afterwards."""
    from transformers.utils import logging

    verbosity, python_state = logging.get_verbosity(), random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  (BigBird seeds the global generator)
    dtype = torch.get_default_dtype()
    logging.set_verbosity(logging.CRITICAL)
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.device("cpu"):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(dtype)
        logging.set_verbosity(verbosity)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _verify(factory: ModelFactory, longest: int | None, packing: bool) -> CallConvention:
    unbounded = _comparison(factory, None)
    unbounded.check_original(longest)
    comparisons = [unbounded]
    if longest is not None and any(size >= longest for size in miniature.window_sizes(factory.config).values()):
        comparisons.append(_comparison(factory, longest))
        # windows longer than every document have no effect; the result then holds up to the smallest of them
    reasons: list[str] = []
    for comparison in comparisons:
        for convention in comparison.packed_conventions():
            reason = comparison.why_not(convention)
            if reason is None:
                convention = replace(convention, shardable=comparison.is_shardable(convention))
                if convention.first_position:  # padding_idx of the miniature may differ: its vocabulary is smaller
                    padding_index = factory.config.get_text_config().pad_token_id
                    convention = replace(convention, first_position=padding_index + 1)
                return _with_length_limit(convention, comparison)
            reasons.append(reason)
    packed = min(reasons, key=_priority)
    for comparison in comparisons:
        convention = CallConvention("original", shardable=False)
        reason = comparison.why_not(convention)
        if reason is None and not packing:
            return _with_length_limit(convention, comparison)
        if reason is None:
            raise ValueError(
                f"{unbounded.model_name}: packed rows change its output: {packed}. Set data.packing = false: one "
                "document per row, with the model's own attention, is correct"
                + (_window_advice(factory) if "window" in packed else "")
            )
    if reason is not None and "model.lora" in reason:
        raise ValueError(f"{unbounded.model_name}: {reason}")
    raise ValueError(
        f"{unbounded.model_name}: packed and padded rows both change its output. Packed: {packed}. Padded, with its "
        f"own attention: {reason}"
    )


def _comparison(factory: ModelFactory, longest: int | None) -> Comparison:
    """The comparison for ``factory``. The last few are cached, for a run that builds its model again."""
    name = f"{longest} {_identity(factory)}"
    if name not in _comparisons:
        while len(_comparisons) > 3:
            del _comparisons[next(iter(_comparisons))]
        _comparisons[name] = Comparison.from_factory(factory, longest)
    return replace(_comparisons[name], wrap=factory.wrap, add_adapters=factory.add_adapters)


def _window_advice(factory: ModelFactory) -> str:
    """Advice for an error message if the config names attention windows."""
    sizes = {key: size for key, size in miniature.window_sizes(factory.config).items() if "window" in key}
    named = ", ".join(f"{key} = {size}" for key, size in sizes.items())
    return f"; or use documents no longer than its window ({named})" if named else ""


def _priority(reason: str) -> int:
    """Rank of a reason when several conventions fail; the lowest is the most specific one, and is reported."""
    return 0 if reason.startswith("LoRA") else 2 if reason.startswith("logits") else 1


def _with_length_limit(convention: CallConvention, comparison: Comparison) -> CallConvention:
    """``convention`` with the length of the longest document that it holds for."""
    limits = dict(comparison.position_limits)
    if comparison.longest is not None:
        windows = miniature.window_sizes(comparison.config)
        limits |= {key: size for key, size in windows.items() if size >= comparison.longest}
    if not limits:
        return convention
    key = min(limits, key=lambda name: limits[name])
    return replace(convention, max_tokens=limits[key], limit_key=key)
