"""Trained runs with weights in 8 and 4 bits: export that transformers loads, evaluation, structure prediction."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ds4sci.inference import predict, ranks
from ds4sci.inference.embed import embed
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.export import export_run
from ds4sci.inference.trained_run import TrainedRun, evaluation_files
from ds4sci.models.huggingface.quantized_folder import quantize_folder
from ds4sci.nn.quantized_weights import FORMATS
from tests.support import rank_processes
from tests.support.fold_run import make_fold_run

LLAMA = (
    '{model_type = "llama", hidden_size = 128, num_hidden_layers = 2, num_attention_heads = 8, num_key_value_heads = 2,'
    " head_dim = 16, intermediate_size = 192, max_position_embeddings = 512}"
)
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
tokens = torch.arange(5, 45)[None] % 20 + 4
with torch.no_grad():
    for folder in sys.argv[1:]:
        torch.save(AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens).logits, folder + ".pt")
assert not any(name.startswith("ds4sci") for name in sys.modules)
"""


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    file = tmp_path / "proteins.fa"
    file.write_text("".join(f">p{i}\n{''.join(rng.choice(list('ACDEFGHIKL'), 60))}\n" for i in range(8)))
    return file


@pytest.fixture
def run(tmp_path, proteins, trained) -> Path:
    """A language model with adapters, which are merged before the weights are compressed."""
    (tmp_path / "ds.json").write_text(json.dumps({"train_batch_size": 1, "optimizer": {"type": "AdamW"}}))
    file = tmp_path / "run.toml"
    file.write_text(
        'deepspeed = "ds.json"\nseed = 3\n[task]\nname = "causal_lm"\n[train]\nsteps = 1\n[model]\n'
        f"config = {LLAMA}\n[model.lora]\nrank = 4\n[data]\n"
        f'path = "{proteins}"\nvalid = "{proteins}"\ntokenizer = {{kind = "esm"}}\nphases = [{{length = 64}}]\n'
    )
    return trained(file)


def test_exported_weights_are_those_of_the_evaluation(run, tmp_path) -> None:
    """transformers loads the folder in a process without ds4sci; its logits are those of the run, compressed."""
    for format in FORMATS:
        out = export_run(run, tmp_path / format, quantize=format)
        origin = json.loads((out / "ds4sci.json").read_text())
        assert origin["quantize"] == format
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        assert origin["weight_bytes"] < size < origin["weight_bytes"] + 20_000
        assert origin["weight_bytes"] < origin["weight_bytes_uncompressed"] / {"int8": 2.5, "nf4": 4}[format]
    subprocess.run([sys.executable, "-c", LOAD, *FORMATS], check=True, cwd=tmp_path)
    tokens = torch.arange(5, 45)[None] % 20 + 4
    for format in FORMATS:
        found = torch.load(tmp_path / f"{format}.pt", weights_only=True)
        plain, compressed = TrainedRun.load(run), TrainedRun.load(run, quantize=format)
        for one in (plain, compressed):
            one.task.model.model.set_attn_implementation("sdpa")
        with torch.no_grad():
            exact, expected = (one.task.model.model(input_ids=tokens).logits for one in (plain, compressed))
        error = (expected - exact).norm()
        assert 0 < error < {"int8": 0.1, "nf4": 0.6}[format] * exact.norm()
        # bitsandbytes rounds the scales of 4-bit weights and the inputs to bf16 on CPUs with AVX-512
        assert (found - expected).norm() < {"int8": 1e-3, "nf4": 0.1}[format] * error


def test_layers_of_other_widths_stay_as_they_are_in_4_bits(tmp_path) -> None:
    """bitsandbytes fails with them on CPUs with AVX-512. Of this model only layers of 128 inputs are compressed."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 33, "intermediate_size": 128}
    source, out = tmp_path / "source", tmp_path / "out"
    LlamaForCausalLM(LlamaConfig(hidden_size=96, **sizes)).save_pretrained(source)
    quantize_folder(source, out, "nf4")
    stored = load_file(out / "model.safetensors")
    assert [name for name, x in stored.items() if x.dtype == torch.uint8 and x.numel() > 4096] == [
        "model.layers.0.mlp.down_proj.weight"
    ]
    loaded = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert bool(torch.isfinite(loaded(input_ids=torch.arange(8)[None]).logits).all())
    LlamaForCausalLM(LlamaConfig(hidden_size=96, **sizes | {"intermediate_size": 96})).save_pretrained(source)
    with pytest.raises(ValueError, match="multiple of 64"):
        quantize_folder(source, tmp_path / "none", "nf4")


def test_evaluation_is_not_that_of_the_report(run, proteins, tmp_path) -> None:
    plain = evaluate_run(run, tmp_path / "plain.json", files={"fasta": proteins}, show=False)
    reported = {file: file.read_bytes() for file in evaluation_files(run).values() if file.is_file()}
    found = evaluate_run(run, tmp_path / "int8.json", files={"fasta": proteins}, quantize="int8", show=False)
    assert (plain["quantize"], found["quantize"]) == (None, "int8")
    assert found["weight_bytes"] < plain["weight_bytes"] / 2.5
    assert 0 < abs(found["nats"] - plain["nats"]) < 0.01 * plain["nats"]
    assert reported == {file: file.read_bytes() for file in evaluation_files(run).values() if file.is_file()}


def test_embeddings_with_compressed_weights(run, proteins, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ranks, "get_context", rank_processes.forked_from_server)  # starts in a second
    found = {}
    for format in (None, "int8"):
        out = tmp_path / f"vectors_{format}"
        embed(run, proteins, out, mean=True, quantize=format)
        assert json.loads((out / "index.json").read_text())["quantize"] == format
        found[format] = load_file(out / "means.safetensors")["embedding"]
    assert 0 < (found["int8"] - found[None]).norm() < 0.05 * found[None].norm()


def test_refused_exports(run, tmp_path) -> None:
    with pytest.raises(ValueError, match="--quantize and --adapter cannot be combined"):
        export_run(run, tmp_path / "out", quantize="int8", adapter=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_structures_predicted_with_compressed_weights(format, tmp_path) -> None:
    run = make_fold_run(tmp_path)
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">one\nMKTAYIAKQRQISFVKSHFSRQ\n")
    plain = predict.predict_run(run, fasta, tmp_path / "plain", show=False)
    found = predict.predict_run(run, fasta, tmp_path / "compressed", quantize=format, show=False)
    assert found["quantize"] == format
    assert found["weight_bytes"] < plain["weight_bytes"]
    one, other = plain["records"][0]["plddt"], found["records"][0]["plddt"]
    assert other == pytest.approx(one, abs={"int8": 0.5, "nf4": 5}[format])
