"""Hugging Face folders whose linear layers have 8- or 4-bit weights, as transformers reads them without ds4sci."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ds4sci.nn.quantized_weights import Format, import_bitsandbytes, import_torchao, quantizable_layers


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weights before and after."""

    before: int
    after: int


def quantize_folder(source: Path, out: Path, format: Format) -> Sizes:
    """Write the model of the Hugging Face folder ``source`` into ``out`` with weights in ``format``.

    ``config.json`` names the format, so that ``AutoModel….from_pretrained(out)`` loads it, on CPU and GPU; it needs
    accelerate, and torchao (``int8``) or bitsandbytes (``nf4``). Layers: ``quantizable_layers``, in nf4 those whose
    number of inputs is a multiple of 64, since bitsandbytes 0.50 fails with others on CPUs with AVX-512.

    Raises ValueError if ``source`` holds no transformers model, if it has no layer to compress, and without
    these packages.
    """
    model_class = _model_class(source)
    plain = model_class.from_pretrained(source, dtype=torch.float32)
    chosen = [
        name for name, layer in quantizable_layers(plain).items() if format != "nf4" or not layer.in_features % 64
    ]
    if not chosen:
        raise ValueError(
            f"{source}: no layer of {type(plain).__name__} has a multiple of 64 inputs, so none can be exported in "
            "nf4; use int8"
        )
    kept = [
        rf"^{re.escape(name)}(\.weight)?$"
        for name, layer in plain.named_modules()
        if isinstance(layer, torch.nn.Linear) and name not in chosen
    ]
    del plain
    model = model_class.from_pretrained(
        source, quantization_config=_settings(format, kept), device_map="cpu", dtype=torch.float32
    )
    compressed = {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and type(layer.weight) is not torch.nn.Parameter
    }
    if compressed != set(chosen):
        different = ", ".join(sorted(compressed ^ set(chosen))[:4])
        raise RuntimeError(f"{type(model).__name__}: transformers compressed other layers than intended: {different}")
    model.save_pretrained(out)
    return Sizes(_weight_bytes(source), _weight_bytes(out))


def _weight_bytes(folder: Path) -> int:
    """Bytes of all tensors in the safetensors files of ``folder``."""
    return sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())


def _model_class(folder: Path) -> Any:
    import transformers

    file = folder / "config.json"
    names = json.loads(file.read_text(encoding="utf-8")).get("architectures") if file.is_file() else None
    found = getattr(transformers, names[0], None) if names else None
    if found is None:
        raise ValueError(
            "only models of transformers can be exported in 8 or 4 bits: language models and vision transformers; "
            "other models are compressed when they are used, such as by ds4sci predict --quantize"
        )
    return found


def _settings(format: Format, kept: list[str]) -> Any:
    import transformers

    try:
        import accelerate  # noqa: F401 (transformers loads compressed weights with it)
    except ImportError:
        raise ValueError("compressed weights need accelerate: pip install 'ds4sci[quantize]'") from None
    if format == "int8":
        settings = import_torchao().quantization.Int8WeightOnlyConfig()
        return transformers.TorchAoConfig(settings, modules_to_not_convert=kept)
    import_bitsandbytes()
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=format, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=kept
    )
