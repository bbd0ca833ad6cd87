"""Sequences → token ids: tokenizers of the Hugging Face API, and a vectorised way from residues to the same ids.

``build("esm")``, ``build("kmer", k=6, stride=3)`` … give a tokenizer of transformers' API that ``save_pretrained``
writes beside the model. The folder is the registry: a kind is a module here with ``build(**options)``, and a dotted
kind (``my_lab.tokens``) is imported as given.

| kind | tokens | class | ``AutoTokenizer`` without ds4sci |
|---|---|---|---|
| ``esm`` | one a residue, ESM-2's 33 | transformers' own ``EsmTokenizer`` | yes |
| ``nucleotide`` | one a base: A C G T N | ``tokenizer.json`` | yes |
| ``byte`` | one a byte, 256 | ``tokenizer.json`` | yes |
| ``kmer``, stride = k | k bases, single bases where no k fit | ``tokenizer.json`` | yes |
| ``kmer``, stride < k | overlapping windows of k | ``OverlappingKmerTokenizer`` | with ``trust_remote_code`` |
| ``codon`` | three bases from a frame, 64 | ``tokenizer.json`` | yes |

``load`` reads any of them back, and any other tokenizer of the hub. ``residue_encoder(tokenizer)`` gives the same ids
from a uint8 array of letters without Python strings, and says which residues each token stands for.
transformers is imported when a tokenizer is built or loaded, not before.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds4sci.data.tokenizers.encoder import ResidueEncoder, residue_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["KINDS", "ResidueEncoder", "build", "load", "residue_encoder"]

KINDS = ("esm", "nucleotide", "byte", "kmer", "codon")


def build(kind: str, **options: Any) -> PreTrainedTokenizerBase:
    """A new tokenizer of ``kind`` (one of ``KINDS``, or a dotted module with a ``build``).

    ``ValueError`` for a kind that is not there, an option that the kind has not, and a value that it refuses.
    """
    if kind not in KINDS and "." not in kind:
        raise ValueError(
            f"no tokenizer is called {kind!r}; known: {', '.join(KINDS)}, or a dotted module with a build()"
        )
    builder = importlib.import_module(kind if "." in kind else f"{__name__}.{kind}").build
    known = inspect.signature(builder).parameters
    for name in options:
        if name not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"tokenizer {kind!r} has no option {name!r}; {has}")
    return builder(**options)


def load(name_or_folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in a folder, or a hub model's own; code that lies in the folder is not run.

    ``ValueError`` for a folder that holds none, ``OSError`` from transformers for a name that neither the hub nor its
    cache has.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        config = folder / "tokenizer_config.json"
        if not config.exists() and not (folder / "tokenizer.json").exists():
            raise ValueError(
                f"{folder}: no tokenizer_config.json or tokenizer.json; save the tokenizer there with save_pretrained"
            )
        try:
            settings = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        except ValueError as error:
            raise ValueError(f"{config}: no JSON ({error}); save the tokenizer again") from None
        if settings.get("tokenizer_class") == "OverlappingKmerTokenizer":
            from ds4sci.data.tokenizers.overlapping import OverlappingKmerTokenizer

            return OverlappingKmerTokenizer.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(name_or_folder))
