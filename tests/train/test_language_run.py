"""Language-model runs from end to end: sequence parallelism, resume, adapters, export, evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds4sci.inference import export
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.tasks.evaluations import EvaluationRequest
from ds4sci.tasks.evaluations.contacts import contact_evaluation
from ds4sci.tasks.evaluations.variants import residue_log_probabilities
from ds4sci.train import checkpoint
from tests.support import language_oracle as oracle
from tests.support import rank_processes
from tests.support.run_files import losses

SEED = "ACGTTGCAAGCTTAGCCGATATCGGATCCTAGGCAT"
LLAMA = "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in oracle.LLAMA.items()) + "}"
ESM = "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in oracle.ESM.items()) + "}"


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    file = tmp_path / "genome.fa"
    file.write_text(">chromosome\n" + "".join(rng.choice(list("AACGT"), 3000)) + "\n")
    return file


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes run.toml and ds.json."""

    def run_file(task: str, model: str, data: str, *, stage: int = 0, steps: int = 8, **train: Any) -> Path:
        config = {
            "train_batch_size": 4, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
            "zero_optimization": {"stage": stage},
        }  # fmt: skip
        (tmp_path / "ds.json").write_text(json.dumps(config))
        settings = {"steps": steps, "log_every": 1, "save_every": 4, "keep_last": 9, "name": "run"} | train
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
        file = tmp_path / "run.toml"
        head = f'deepspeed = "ds.json"\nseed = 3\n[task]\nname = "{task}"\n[train]\n{lines}'
        file.write_text(f"{head}\n[model]\n{model}\n[data]\n{data}\n")
        return file

    return run_file


def assert_close_losses(one: dict[int, float], other: dict[int, float]) -> None:
    assert one.keys() == other.keys()
    for step, loss in one.items():
        assert loss == pytest.approx(other[step], rel=2e-5), step


def test_sequence_parallel_runs_equal_single_rank_runs_and_resume_on_both(tmp_path, genome, write) -> None:
    data = (
        f'path = "{genome}"\ntokenizer = {{kind = "nucleotide"}}\nreverse_complement = 0.5\nphases = [{{length = 128}}]'
    )
    file = write("causal_lm", f"config = {LLAMA}", data)
    rank_processes.run(2, ["--config", str(file), "parallel.sequence=2"], tmp_path)
    ended = rank_processes.run(1, ["--config", str(file), "train.name=one"], tmp_path)
    assert "Data, training, length 128: 2,850 of 2,850 residues read" in " ".join(ended.output.split())
    assert "Data, held out: 150 of 150 residues read" in " ".join(ended.output.split())
    runs = tmp_path / "runs"
    start = json.loads((runs / "one" / "metrics.jsonl").read_text().splitlines()[0])
    assert start["data"]["held out"]["tokenized_residues"] == 150
    assert_close_losses(losses(runs / "run"), losses(runs / "one"))
    for name, ranks in (("run", 1), ("one", 2)):
        again = runs / f"{name}_again"
        shutil.copytree(runs / name, again)
        shutil.rmtree(checkpoint.checkpoint_folder(again, 8))
        rank_processes.run(ranks, ["--resume", str(again), f"parallel.sequence={ranks}"], tmp_path)
        assert_close_losses(losses(again), losses(runs / name))
    line = json.loads((runs / "run" / "metrics.jsonl").read_text().splitlines()[-2])
    assert line["tokens_per_second"] > 0
    assert 0 < line["utilization"] < 1


def test_the_exported_model_is_the_trained_one(tmp_path, genome, write) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = f'path = "{genome}"\ntokenizer = {{kind = "nucleotide"}}\nphases = [{{length = 128}}]'
    file = write("causal_lm", f"config = {LLAMA}", data, steps=2)
    rank_processes.run(1, ["--config", str(file)], tmp_path)
    run, out = tmp_path / "runs/run", tmp_path / "out"
    export.export_run(run, out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    _, task = checkpoint.load_run(run)
    inner = task.model.model
    inner.set_attn_implementation("sdpa")
    letters = SEED * 3
    tokens = torch.tensor(tokenizer(letters)["input_ids"])[None]
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
        assert torch.equal(logits, inner(input_ids=tokens).logits)
    (tmp_path / "one.fa").write_text(f">one\n{letters}\n")
    found = evaluate_run(run, tmp_path / "one.json", files={"fasta": tmp_path / "one.fa"}, show=False)
    nats = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none")
    bases = [i for i, t in enumerate(tokens[0, 1:].tolist()) if t not in tokenizer.all_special_ids]
    assert found["residues"] == len(bases)
    assert found["nats"] == pytest.approx(float(nats[bases].mean()), rel=1e-5)
    assert json.loads((tmp_path / "one.json").read_text())["classes"].keys() >= set("ACGT")
    with pytest.raises(ValueError, match="already exists"):
        export.export_run(run, out)


@pytest.mark.nightly
def test_embeddings_are_the_last_hidden_states_on_any_number_of_ranks(tmp_path, genome, write, monkeypatch) -> None:
    """Three bases per token, five heads on two ranks, and sequences longer than those of training.

    The means are computed in a spawned process, as by a user, and the others in forked ones, which start in a second.
    """
    from safetensors.torch import load_file

    from ds4sci.inference import ranks as inference_ranks
    from ds4sci.inference.embed import embed

    data = f'path = "{genome}"\ntokenizer = {{kind = "kmer", k = 3}}\nphases = [{{length = 64}}]'
    file = write("causal_lm", f"config = {LLAMA}", data, steps=1)
    rank_processes.run(1, ["--config", str(file)], tmp_path)
    run, fasta = tmp_path / "runs/run", tmp_path / "two.fa"
    fasta.write_text(f">long\n{SEED * 20}\n>short\n{SEED[:20]}\n")
    with monkeypatch.context() as patch:
        patch.setattr(inference_ranks, "get_context", rank_processes.forked_from_server)
        assert embed(run, fasta, tmp_path / "one") == embed(run, fasta, tmp_path / "two", ranks=2) == 2
    index = json.loads((tmp_path / "two" / "index.json").read_text())
    assert list(index["sequences"]) == ["long", "short"]
    _, task = checkpoint.load_run(run)
    inner = task.model.model
    inner.set_attn_implementation("sdpa")
    for name, letters in (("long", SEED * 20), ("short", SEED[:20])):
        ids, place, size = task.tokenizer.encode(np.frombuffer(letters.encode(), np.uint8))
        with torch.no_grad():
            states = inner.model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0][size > 0]
        one, two = (load_file(tmp_path / folder / index["sequences"][name]) for folder in ("one", "two"))
        for found in (one, two):
            torch.testing.assert_close(found["embedding"], states, rtol=1e-4, atol=1e-5)
            assert found["start"].tolist() == place[size > 0].tolist()
            assert int(found["size"].sum()) == len(letters)
    embed(run, fasta, tmp_path / "mean", mean=True)
    means = load_file(tmp_path / "mean" / "means.safetensors")["embedding"]
    torch.testing.assert_close(means[1], states.mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="not empty"):
        embed(run, fasta, tmp_path / "mean")


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    file = tmp_path / "proteins.fa"
    chains = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), rng.integers(20, 90))) for _ in range(40)]
    file.write_text("".join(f">p{i}\n{chain}\n" for i, chain in enumerate(chains)))
    return file


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Folder with a small ESM and its tokenizer."""
    from ds4sci.data import tokenizers

    model = oracle.model("masked_lm", oracle.ESM)
    inner = model.to_pretrained(adapter=False, rope_factor=1.0, length=64)
    inner.save_pretrained(tmp_path / "base")
    tokenizers.build("esm").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.nightly
def test_adapters_of_a_loaded_model_under_zero_3(tmp_path, proteins, base, write) -> None:
    import peft
    from transformers import AutoModelForMaskedLM

    data = f'path = "{proteins}"\nvalid = "{proteins}"\nphases = [{{length = 128, row_length = 256}}]'
    file = write("masked_lm", f'path = "{base}"\n[model.lora]\nrank = 4', data, stage=3, steps=3)
    rank_processes.run(2, ["--config", str(file), "parallel.sequence=2"], tmp_path)
    run = tmp_path / "runs/run"
    shutil.move(base, tmp_path / "moved")  # the run needs it no more
    export.export_run(run, tmp_path / "adapter", adapter=True)
    export.export_run(run, tmp_path / "merged")
    assert {f.name for f in (tmp_path / "adapter").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "moved").eval()
    tokens = torch.arange(4, 24)[None]
    with torch.no_grad():
        before = plain(input_ids=tokens).logits
        merged = AutoModelForMaskedLM.from_pretrained(tmp_path / "merged").eval()(input_ids=tokens).logits
        adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(input_ids=tokens).logits
    assert torch.allclose(adapted, merged, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted, before, rtol=1e-4, atol=1e-5)


def test_secondary_structure_on_top_of_a_loaded_model(tmp_path, base, write) -> None:
    from transformers import AutoModelForTokenClassification

    chains = rank_processes.ROOT / "examples/fold/data/chains_valid.npz"
    data = f'train = "{chains}"\nvalid = "{chains}"\nlength = 256'
    file = write("token_classification", f'path = "{base}"', data, steps=3)
    rank_processes.run(1, ["--config", str(file)], tmp_path)
    run = tmp_path / "runs/run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (summary,) = [line for line in lines if line["kind"] == "eval"]
    assert 0 < summary["accuracy"] < 1
    assert {"recall_helix", "recall_strand", "recall_loop", "nats"} <= summary.keys()
    export.export_run(run, tmp_path / "out")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "helix", 1: "strand", 2: "loop"}


def test_masked_models_score_every_residue_variants_and_contacts(tmp_path, proteins, base, write) -> None:
    data = f'path = "{proteins}"\nphases = [{{length = 128, row_length = 256}}]\nvalid_fraction = 0.2'
    file = write("masked_lm", f'path = "{base}"', data, steps=2)
    rank_processes.run(1, ["--config", str(file)], tmp_path)
    run = tmp_path / "runs/run"
    found = evaluate_run(run, files={"fasta": proteins}, options={"ngrams": True}, show=False)
    letters = sum(len(line) for line in proteins.read_text().splitlines() if not line.startswith(">"))
    assert found["residues"] == letters
    assert set(found["ngrams"]["nats"]) == {"0", "1", "2", "3"}
    chain = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
    (tmp_path / "one.fa").write_text(f">one\n{chain}\n")
    (tmp_path / "v.csv").write_text("mutant,DMS_score\nK2A,0.5\nT3V:Y5F,0.1\nA4G,0.7\n")
    files = {"fasta": tmp_path / "one.fa", "variants": tmp_path / "v.csv"}
    for marginal in ("masked", "wildtype"):
        scored = evaluate_run(run, files=files, options={"marginal": marginal})
        assert set(scored["scores"]) == {"K2A", "T3V:Y5F", "A4G"}
        assert -1 <= scored["spearman"] <= 1
    (tmp_path / "v.csv").write_text("mutant,DMS_score\nK2A,0.5\nA2G,0.7\n")
    with pytest.raises(ValueError, match=r"v.csv: line 3: column 'mutant': 'A2G': the sequence has 'K' at 2"):
        evaluate_run(run, files=files)
    chains = rank_processes.ROOT / "examples/fold/data/chains_valid.npz"
    loaded = TrainedRun.load(run)
    evaluation = contact_evaluation(loaded.task, num_train=3, max_length=48)
    contacts = evaluation.run(EvaluationRequest(loaded.device, {"contacts": chains})).values
    assert contacts["scored"] >= 1
    assert 0 <= contacts["precision"]["P@L, ≥ 6"] <= 1


def test_masked_marginals_equal_those_of_one_mask_at_a_time(tmp_path, proteins, base, write) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    data = f'path = "{proteins}"\nvalid = "{proteins}"\nphases = [{{length = 128}}]'
    rank_processes.run(1, ["--config", str(write("masked_lm", f'path = "{base}"', data, steps=1))], tmp_path)
    task = TrainedRun.load(tmp_path / "runs/run", "latest").task
    chain = "MKTAYIAKQRQISFVKSH"
    table = residue_log_probabilities(task, np.frombuffer(chain.encode(), np.uint8), np.array([2, 7]))
    export.export_run(tmp_path / "runs/run", tmp_path / "out", which="latest")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    for position in (2, 7):
        ids = tokenizer(chain, return_tensors="pt")["input_ids"]
        ids[0, position + 1] = tokenizer.mask_token_id
        with torch.no_grad():
            own = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, position + 1].log_softmax(-1)
        columns = tokenizer.convert_tokens_to_ids(list("ARNDCQEGHILKMFPSTWYV"))
        assert np.allclose(table[position], own[columns].numpy(), atol=1e-5)
    assert np.isnan(table[3]).all()


@pytest.mark.parametrize(
    ("ranks", "override", "words"),
    [
        (2, "parallel.sequence=3", "parallel.sequence = 3 does not divide the 2 ranks"),
        (1, "model.overrides={attention_probs_dropout_prob=0.1}", "attention_probs_dropout_prob=0.0"),
        (1, "data.tokenizer={kind=\"codons\"}", "no tokenizer kind 'codons'"),
        (1, "data.phases=[{length=64, rope_factor=2.0}]", "rope_factor needs a model with plain rotary"),
        (1, "data.alphabet=dna", "proteins.fa"),
    ],
)  # fmt: skip
def test_refused_configurations(ranks, override, words, tmp_path, proteins, write) -> None:
    data = f'path = "{proteins}"\nvalid = "{proteins}"\ntokenizer = {{kind = "esm"}}\nphases = [{{length = 128}}]'
    file = write("masked_lm", f"config = {ESM}", data, steps=1)
    ended = rank_processes.run(ranks, ["--config", str(file), override], tmp_path, code=2)
    assert words in ended.output
    assert "Traceback" not in ended.output


def test_a_task_without_sequence_parallelism_is_refused(tmp_path, run_file) -> None:
    file = run_file()
    ended = rank_processes.run(2, ["--config", str(file), "parallel.sequence=2"], tmp_path, code=2)
    refused = "parallel.sequence = 2, but the task tests.support.toy_task cannot split a row over ranks"
    assert f"{file}: {refused}" in ended.output


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm", "token_classification"])
def test_an_exported_adapter_finds_its_base_model(kind, tmp_path, proteins, write, trained) -> None:
    """peft's AutoPeftModel classes load the folder; the logits equal those of the run."""
    import peft

    from ds4sci.data import tokenizers
    from ds4sci.data.language.batches import as_batch

    causal = kind == "causal_lm"
    built = oracle.model(*(("causal_lm", oracle.LLAMA) if causal else ("masked_lm", oracle.ESM)))
    built.to_pretrained(adapter=False, rope_factor=1.0, length=64).save_pretrained(tmp_path / "base")
    tokenizers.build("esm").save_pretrained(tmp_path / "base")
    chains = rank_processes.ROOT / "examples/fold/data/chains_valid.npz"
    data = f'path = "{proteins}"\nphases = [{{length = 128}}]'
    if kind == "token_classification":
        data = f'train = "{chains}"\nvalid = "{chains}"\nlength = 256'
    run = trained(write(kind, f'path = "{tmp_path}/base"\n[model.lora]\nrank = 2', data))
    out = export.export_run(run, tmp_path / "adapter", adapter=True)
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    classes = {
        "masked_lm": peft.AutoPeftModel,
        "causal_lm": peft.AutoPeftModelForCausalLM,
        "token_classification": peft.AutoPeftModelForTokenClassification,
    }
    more = {"num_labels": 3} if kind == "token_classification" else {}
    model = classes[kind].from_pretrained(out, **more).eval()
    _, task = checkpoint.load_run(run)
    ids = np.arange(4, 24)
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(ids)[None]).logits.log_softmax(-1)
        plain = model.get_base_model()
        wanted = task.language.log_probabilities(as_batch([ids], len(ids), 1, rope_factor=1.0))
        with model.disable_adapter():
            before = plain(input_ids=torch.from_numpy(ids)[None]).logits.log_softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before, rtol=1e-3, atol=1e-3)


def test_an_adapter_of_a_new_model_is_not_exported_without_its_base(tmp_path, proteins, write, trained) -> None:
    data = f'path = "{proteins}"\ntokenizer = {{kind = "esm"}}\nphases = [{{length = 128}}]'
    run = trained(write("masked_lm", f"config = {ESM}\n[model.lora]\nrank = 2", data))
    with pytest.raises(
        ValueError, match=r"the adapters of this run belong to a base model with new weights.* export the merged model"
    ):
        export.export_run(run, tmp_path / "adapter", adapter=True)
    export.export_run(run, tmp_path / "merged")


def test_interpolated_positions_equal_those_of_the_exported_model(tmp_path, proteins, write, trained) -> None:
    """Embeddings, variant scores and attention maps use the ``rope_factor`` of the last phase, as training and export
    do."""
    from transformers import AutoModelForCausalLM

    phases = "[{length = 64}, {from_progress = 0.5, length = 128, rope_factor = 4.0}]"
    data = f'path = "{proteins}"\ntokenizer = {{kind = "esm"}}\nphases = {phases}'
    run = trained(write("causal_lm", f"config = {LLAMA}", data))
    export.export_run(run, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    task = TrainedRun.load(run).task
    letters = np.frombuffer(b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ" * 2, np.uint8)
    ids, _, size = task.tokenizer.encode(letters)
    tokens = torch.from_numpy(ids)[None]
    hidden = ids.copy()
    hidden[np.flatnonzero(size)[40]] = task.tokenizer.mask_id
    with torch.no_grad():
        found = plain(input_ids=tokens, output_attentions=True)
        states = plain.model(input_ids=tokens).last_hidden_state[0][size > 0]
        behind_mask = plain(input_ids=torch.from_numpy(hidden)[None]).logits[0].log_softmax(-1)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(task.embed(letters, "one").hidden, states, **close)
    columns = task.tokenizer.hf_tokenizer.convert_tokens_to_ids(list("ARNDCQEGHILKMFPSTWYV"))
    one_pass = residue_log_probabilities(task, letters, None)
    wanted = found.logits[0].log_softmax(-1)[np.flatnonzero(size) - 1][:, columns]
    np.testing.assert_allclose(one_pass, wanted.numpy(), **close)
    masked = residue_log_probabilities(task, letters, np.array([40]))[40]
    np.testing.assert_allclose(masked, behind_mask[np.flatnonzero(size)[40]][columns].numpy(), **close)
    maps = task.language.attention_maps(tokens, rope_factor=task.rope_factor)
    np.testing.assert_allclose(maps, torch.cat(found.attentions, 1)[0].numpy(), **close)
