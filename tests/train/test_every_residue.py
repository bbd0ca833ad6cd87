"""Evaluation and embedding read every residue of a file or name the reason; empty inputs have no score."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from ds4sci.data.language.batches import DocumentReader
from ds4sci.data.sequences import index
from ds4sci.inference import ranks as inference_ranks
from ds4sci.inference.embed import embed
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.tasks.evaluations.ngram_baseline import score_ngrams
from tests.support import language_oracle as oracle
from tests.support import rank_processes

BPE = '{kind = "tests.support.trained_tokenizers", name = "bpe"}'
K6 = '{kind = "kmer", k = 6, stride = 1}'


def bases(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


@pytest.fixture(autouse=True)
def forked_embedding_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_ranks, "get_context", rank_processes.forked_from_server)


@pytest.fixture
def run(tmp_path: Path, trained: Callable[[Path], Path]) -> Callable[..., Path]:
    def make(task: str, tokenizer: str, *, length: int = 128, data: str = "", on_bad_record: str = "error") -> Path:
        model: dict[str, Any] = oracle.LLAMA if task == "causal_lm" else oracle.ESM
        config = "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in model.items()) + "}"
        (tmp_path / "train.fa").write_text(f">chromosome\n{bases(3000, 1)}\n")
        (tmp_path / "ds.json").write_text(
            json.dumps({"train_batch_size": 1, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}})
        )
        (tmp_path / "run.toml").write_text(
            f'deepspeed = "ds.json"\n[task]\nname = "{task}"\n[train]\nsteps = 1\n[model]\nconfig = {config}\n[data]\n'
            f'path = "{data or tmp_path / "train.fa"}"\nalphabet = "auto"\n'
            f'on_bad_record = "{on_bad_record}"\ntokenizer = {tokenizer}\n'
            f"phases = [{{length = {length}}}]\n"
        )
        return trained(tmp_path / "run.toml")

    return make


def fasta(folder: Path, *records: str) -> Path:
    file = folder / "asked.fa"
    file.write_text("".join(f">r{i}\n{letters}\n" for i, letters in enumerate(records)))
    return file


def test_a_bpe_tokenizer_reads_all_12_000_bases(tmp_path, run) -> None:
    """Regression test: 1,375 bases were read and reported as all."""
    asked = fasta(tmp_path, *(bases(3000, seed) for seed in range(4)))
    found = evaluate_run(run("causal_lm", BPE), files={"fasta": asked}, show=True)
    assert (found["total_residues"], found["tokenized_residues"], found["residues"]) == (12_000, 12_000, 12_000)
    assert found["excluded"] == {}
    assert found["not_scored"] == {}
    assert 1.2 < found["nats"] < 4
    assert found["nats"] == pytest.approx(math.log(found["perplexity"]))


def test_a_masked_model_with_bpe_has_no_nats_per_base(tmp_path, run) -> None:
    found = evaluate_run(run("masked_lm", BPE), files={"fasta": fasta(tmp_path, bases(700))}, show=True)
    assert (found["tokenized_residues"], found["residues"]) == (700, 700)
    assert found["nats"] is None
    assert found["perplexity"] is None
    assert found["nats_per_token"] > 1


def test_overlapping_kmers_count_each_base_once(tmp_path, run) -> None:
    asked = fasta(tmp_path, bases(500), bases(4), "ACGTNACGTACGTTN" + bases(30))
    found = evaluate_run(run("masked_lm", K6, length=64), files={"fasta": asked}, show=True)
    assert found["total_residues"] == 549
    assert found["excluded"] == {"in no token": 4}
    assert found["untokenized_records"] == ["r1"]
    assert found["not_scored"] == {"unknown or of weight 0": 6}  # the bases before the first N fill no word of six
    assert found["residues"] == 549 - 4 - 6
    assert found["nats"] > math.log(4) - 0.05


@pytest.mark.slow
def test_ngrams_skip_unknown_bases(tmp_path, run) -> None:
    asked = fasta(tmp_path, "ACGTNNNNNNNNNNNNNNNNACGTACGTTN" + bases(30))
    made = run("causal_lm", '{kind = "nucleotide", ends = "bos"}')
    found = evaluate_run(made, files={"fasta": asked}, options={"ngrams": True}, show=False)
    assert found["residues"] == found["ngrams"]["residues"] == 43
    assert found["ngrams"]["excluded"] == {"unknown": 17}
    assert found["ngrams"]["nats"]["0"] > 1.3
    (tmp_path / "n.fa").write_text(f">n\n{'N' * 40}\n")
    task = TrainedRun.load(made).task
    store = task.open_sequences(tmp_path / "n.fa", tmp_path / "stored")
    with pytest.raises(ValueError, match="--ngrams: no residue of"):
        score_ngrams(task, store)


def test_empty_evaluations_are_refused(tmp_path, run) -> None:
    made = run("masked_lm", K6, length=64)
    with pytest.raises(ValueError, match=r"4 residues in 1 records, none of them in a token; .*record 'r0'"):
        evaluate_run(made, files={"fasta": fasta(tmp_path, "ACGT")}, show=False)
    with pytest.raises(ValueError, match=r"nothing to score: of 20 of 20 bases read, none counts .*\(r0\)"):
        evaluate_run(made, files={"fasta": fasta(tmp_path, "N" * 20)}, show=False)
    task = TrainedRun.load(made).task
    with pytest.raises(ValueError, match="nothing to score"):
        task.summarize([])


@pytest.mark.slow
def test_a_record_without_a_token_has_no_embedding(tmp_path, run) -> None:
    asked = fasta(tmp_path, bases(50), "ACGT", bases(31))
    with pytest.raises(ValueError, match=r"asked.fa: line 3: record 'r1': its 4 residues are in no token that"):
        embed(run("masked_lm", K6, length=64), asked, tmp_path / "out", mean=True)


@pytest.mark.slow
def test_records_without_a_token_are_skipped_by_name(tmp_path, run) -> None:
    asked = fasta(tmp_path, bases(50), "ACGT", bases(31), "N" * 20)
    assert embed(run("masked_lm", K6, length=64, on_bad_record="skip"), asked, tmp_path / "out", mean=True) == 2
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["sequences"] == {"r0": 0, "r2": 1}
    assert index["untokenized_records"] == ["r1", "r3"]
    assert (index["total_residues"], index["tokenized_residues"], index["excluded"]) == (105, 101, {"in no token": 4})
    assert index["unknown"] == 20
    means = load_file(tmp_path / "out" / "means.safetensors")["embedding"]
    assert means.shape[0] == 2
    assert np.isfinite(means.numpy()).all()


def test_the_first_residue_of_a_causal_model_without_bos(tmp_path, run) -> None:
    protein = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
    (tmp_path / "p.fa").write_text("".join(f">p{i}\n{protein[i:]}{protein[:i]}\n" for i in range(20)))
    made = run("causal_lm", '{kind = "byte"}', data=str(tmp_path / "p.fa"))
    table = tmp_path / "v.csv"
    table.write_text("mutant,DMS_score\nK2A,0.5\nT3V,0.5\n")
    files = {"fasta": fasta(tmp_path, protein), "variants": table}
    scored = evaluate_run(made, files=files, options={"marginal": "wildtype"})
    assert scored["spearman"] is None  # all measured alike: there is no order
    table.write_text("mutant,DMS_score\nK2A,0.5\nM1A,0.1\n")
    with pytest.raises(
        ValueError, match=r"v.csv: M1A: a causal model without a begin token does not predict the first"
    ):
        evaluate_run(made, files=files, options={"marginal": "wildtype"})


def test_a_run_reports_its_coverage(tmp_path, run) -> None:
    from ds4sci.config.run_file import RunConfig
    from ds4sci.tasks.build import build_task

    run("causal_lm", '{kind = "codon", frame = 1}')
    task = build_task(RunConfig.load(tmp_path / "run.toml"))
    reported = {name: one.describe("base") for name, one in task.coverage().items()}
    assert reported["training, length 128"] == "2,847 of 2,850 bases read, 3 in no token"  # one before the frame
    assert reported["held out"] == "147 of 150 bases read, 3 in no token"
    (tmp_path / "train.fa").write_text(f">chromosome\n{'MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ' * 20}\n")
    (tmp_path / "train.fa.ds4sci").rename(tmp_path / "old")
    text = (tmp_path / "run.toml").read_text().replace('{kind = "codon", frame = 1}', BPE)
    (tmp_path / "run.toml").write_text(text.replace("[data]", '[data]\nvalid = "p.fa"'))
    (tmp_path / "p.fa").write_text(f">p\n{'MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ' * 3}\n")
    task = build_task(RunConfig.load(tmp_path / "run.toml", [f'data.valid="{tmp_path / "p.fa"}"']))
    assert task.coverage()["held out"].unknown > 0


def test_a_tokenizer_that_maps_long_words_to_unk_is_refused(tmp_path, run) -> None:
    """WordPiece maps words over 100 letters to <unk>, which a model predicts without reading any base."""
    short = '{kind = "tests.support.trained_tokenizers", name = "wordpiece", longest = 100}'
    made = run("causal_lm", short)
    with pytest.raises(ValueError, match=r"reads all 2,850 residues as <unk>.*max_input_chars_per_word"):
        TrainedRun.load(made).task.coverage()
    with pytest.raises(ValueError, match=r"700 of 700 bases read, 700 read as <unk>, none counts"):
        evaluate_run(made, files={"fasta": fasta(tmp_path, bases(700))}, show=False)


@pytest.mark.parametrize(
    ("tokenizer", "trained_on", "asked", "alphabet", "unknown"),
    [
        ('{kind = "nucleotide"}', bases(200), "ACGTRYKMSWBDHVRYKMSWACGTRYKM", "dna", 20),
        ('{kind = "kmer", k = 3}', bases(200), "ACGTRYKMSWBDHVRYKMSWACGTRYKM", "dna", 20),
        ('{kind = "esm"}', "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ" * 2, "GANATTAGNNCAGTXU", "protein", 1),
    ],
)  # fmt: skip
def test_files_are_read_in_the_alphabet_of_the_run(
    tokenizer, trained_on, asked, alphabet, unknown, tmp_path, run
) -> None:
    """By their letters the first two files look like proteins and the last like DNA."""
    (tmp_path / "own.fa").write_text("".join(f">p{i}\n{trained_on[i:]}{trained_on[:i]}\n" for i in range(20)))
    made = run("causal_lm", tokenizer, data=str(tmp_path / "own.fa"))
    task = TrainedRun.load(made).task
    assert task.config.data.alphabet == task.tokenizer.alphabet == alphabet  # runs of before have the second alone
    store = task.open_sequences(fasta(tmp_path, asked), tmp_path / "stored")
    assert store.alphabet == alphabet
    assert store.residues(0).tobytes().decode() == asked
    document = DocumentReader(store, task.tokenizer).document(0, 0, len(asked))
    assert int((document.weights == 0).sum()) in (unknown, -(-unknown // 3))
    other = {"dna": "MKTAYIAKQRQISFVKSH", "protein": bases(300)}[alphabet]
    (tmp_path / "other.fa").write_text(f">other\n{other}\n")
    if alphabet == "dna":
        with pytest.raises(
            ValueError, match=r"other.fa: line 2: record 'other': .* is not a valid base; .* is it protein\?"
        ):
            task.open_sequences(tmp_path / "other.fa", tmp_path / "refused")
    index([tmp_path / "other.fa"], tmp_path / "indexed", jobs=1)
    with pytest.raises(
        ValueError, match=rf"indexed has (dna|protein) sequences, and the run was trained on {alphabet}"
    ):
        task.open_sequences(tmp_path / "indexed", tmp_path)


def test_a_tokenizer_of_all_letters_has_the_alphabet_of_the_run(tmp_path, run) -> None:
    made = run("causal_lm", '{kind = "byte"}')
    task = TrainedRun.load(made).task
    assert task.alphabet == "dna"
    (made / "model" / "sequences.json").unlink()
    assert TrainedRun.load(made).task.alphabet == "auto"


def test_a_failed_embedding_leaves_no_folder(tmp_path, run, monkeypatch) -> None:
    """The corrected command is not refused because of the first one."""

    def fails(work: Any, ranks: int, run: Path, fasta: Path, out: Path, *more: Any, sequence: int) -> list[int]:
        (out / "000000.safetensors").write_bytes(b"")
        if "asked" in fasta.name:
            raise ValueError("residues by kind: in no token")
        return [1]

    monkeypatch.setattr("ds4sci.inference.embed.run_ranks", fails)
    made, out = run("causal_lm", '{kind = "nucleotide"}'), tmp_path / "deep" / "out"
    with pytest.raises(ValueError, match="in no token"):
        embed(made, tmp_path / "asked.fa", out)
    assert list(out.parent.iterdir()) == []
    assert embed(made, tmp_path / "corrected.fa", out) == 1
    assert [file.name for file in out.parent.iterdir()] == ["out"]
    assert [file.name for file in out.iterdir()] == ["000000.safetensors"]
    with pytest.raises(ValueError, match="out: already exists and is not empty"):
        embed(made, tmp_path / "corrected.fa", out)
