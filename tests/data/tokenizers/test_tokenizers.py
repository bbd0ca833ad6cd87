"""Tokenizers: golden ids, the vectorized encoder against the Hugging Face API, saving and loading."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, EsmConfig, EsmTokenizer, LlamaConfig, PreTrainedTokenizerFast

from ds4sci.data.tokenizers import KINDS, build, codon_amino_acids, load, residue_encoder
from ds4sci.data.tokenizers.encoder import TokenizerScheme
from ds4sci.data.tokenizers.schemes import PerResidue

CASES: list[tuple[str, dict[str, Any]]] = [
    ("esm", {}),
    ("nucleotide", {"ends": "bos_eos"}),
    ("byte", {"ends": "eos"}),
    ("kmer", {"k": 1}),
    ("kmer", {"k": 3}),
    ("kmer", {"k": 6, "ends": "bos"}),
    ("kmer", {"k": 4, "stride": 1, "ends": "bos_eos"}),
    ("kmer", {"k": 3, "stride": 2}),
    ("codon", {}),
    ("codon", {"frame": 1, "genetic_code": 11, "ends": "bos_eos"}),
    ("codon", {"frame": 2}),
]
BUILT = [(build(kind, **options), kind) for kind, options in CASES]
NAMES = ["-".join([kind, *(f"{k}{v}" for k, v in options.items())]) for kind, options in CASES]
each = pytest.mark.parametrize(("tokenizer", "kind"), BUILT, ids=NAMES)


def array(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def api(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    return tokenizer(text, add_special_tokens=special)["input_ids"]


def test_golden_ids() -> None:
    esm = build("esm")
    order = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    assert isinstance(esm, EsmTokenizer)
    assert [esm.convert_ids_to_tokens(i) for i in range(33)] == order
    assert len(esm) == 33
    assert (esm.cls_token_id, esm.pad_token_id, esm.eos_token_id, esm.unk_token_id, esm.mask_token_id) == (
        0,
        1,
        2,
        3,
        32,
    )
    assert esm("MKTAYIAK")["input_ids"] == [0, 20, 15, 11, 5, 19, 12, 5, 15, 2]
    for name in ("nucleotide", "byte", "kmer", "codon"):
        tokenizer = build(name)
        ids = [getattr(tokenizer, f"{t}_token_id") for t in ("pad", "unk", "bos", "eos", "mask")]
        assert ids == [0, 1, 2, 3, 4]
    assert api(build("nucleotide"), "ACGTNacgtnURE-") == [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 8, 9, 1, 1]
    assert api(build("nucleotide", ends="bos_eos"), "AC<mask>", special=True) == [2, 5, 6, 4, 3]
    assert api(build("byte"), "Aa\n é") == [70, 102, 15, 37, 200, 174]
    assert api(build("byte", ends="eos"), "A", special=True) == [70, 3]
    # AAC = 1, TTT = 63 after ten single tokens; a new word starts after N, leftover bases are single tokens.
    assert api(build("kmer", k=3), "AACTTTGNAACRA") == [11, 73, 7, 9, 11, 9, 5]
    # Windows of 3, stride 2: AAC, CTT, T left over; every window with an N is unknown.
    assert api(build("kmer", k=3, stride=2), "AACTTT") == [6, 5 + 31]
    assert api(build("kmer", k=3, stride=1), "AACTN") == [6, 5 + 7, 1]
    # ATG = 14, TAA = 48, then two letters that are not a codon.
    assert api(build("codon"), "ATGTAANNNAC") == [19, 53, 1]
    assert api(build("codon", frame=1), "CATGTAA") == [19, 53]
    assert api(build("codon", frame=2), "CAUGUAAUGA") == [5 + 59, 5 + 3]


@each
@settings(max_examples=60)
@given(data=st.data())
def test_the_encoder_gives_the_ids_of_the_api(tokenizer: Any, kind: str, data: st.DataObject) -> None:
    encoder = residue_encoder_of(tokenizer)
    assert not isinstance(encoder.scheme, TokenizerScheme)
    if kind == "esm":
        letters = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
    elif kind == "byte":
        letters = "".join(map(chr, [*range(128), 228, 8491, 128512]))
    else:
        mixed = "ACGT" * 12 + "acgtNnUuRYWSKMBDHVrywskmbdhvEx*-. \n\r"
        letters = data.draw(st.sampled_from(["ACGT", mixed]))  # sequences of bases only have their own code path
    text = data.draw(st.text(letters, max_size=120))
    assume(not any(name in text for name in tokenizer.all_special_tokens))
    ids = encoder.encode_residues(array(text))
    assert ids.dtype == np.int32
    assert ids.tolist() == api(tokenizer, text)
    assert encoder.wrap(ids).tolist() == api(tokenizer, text, special=True)
    start, length = encoder.token_spans(array(text))
    assert len(start) == len(length) == len(ids)
    assert encoder.one_per_residue == (len(ids) == len(array(text)) and isinstance(encoder.scheme, PerResidue))
    # The spans are correct: the letters of each span are the text of its token.
    names = tokenizer.convert_ids_to_tokens(ids.tolist())
    if kind in ("nucleotide", "kmer", "codon"):
        for name, a, n in zip(names, start, length, strict=True):
            folded = re.sub("[NRYSWKMBDHV]", "N", text[a : a + n].upper().replace("U", "T"))
            assert name == folded or (name == "<unk>" and re.search("[^ACGT]", folded))


_ENCODER_CACHE: dict[int, Any] = {}


def residue_encoder_of(tokenizer: Any) -> Any:
    """The encoder of a tokenizer, built once: building compares thousands of letters."""
    if id(tokenizer) not in _ENCODER_CACHE:
        _ENCODER_CACHE[id(tokenizer)] = residue_encoder(tokenizer)
    return _ENCODER_CACHE[id(tokenizer)]


@each
def test_save_and_load(tokenizer: Any, kind: str, tmp_path: Path) -> None:
    text = "ACGTTGCATGNNACGATCGATTAGC"
    tokenizer.save_pretrained(tmp_path)
    for again in (load(tmp_path), load(tmp_path)):
        assert again.get_vocab() == tokenizer.get_vocab()
        assert api(again, text, special=True) == api(tokenizer, text, special=True)
        before, after = residue_encoder_of(tokenizer), residue_encoder(again)
        assert type(after.scheme) is type(before.scheme)
        np.testing.assert_array_equal(after.encode_residues(array(text)), before.encode_residues(array(text)))
        np.testing.assert_array_equal(after.wrap(np.zeros(1, np.int32)), before.wrap(np.zeros(1, np.int32)))
        assert again.pad_token_id == tokenizer.pad_token_id
        assert again.mask_token_id == tokenizer.mask_token_id
        batch = again(["ACGTACGT", "ACGTACGTACGT"], padding=True)
        assert set(batch) == {"input_ids", "attention_mask"}
        again.save_pretrained(tmp_path)  # a loaded tokenizer can be saved again


@pytest.mark.parametrize("config", [LlamaConfig, EsmConfig])
@pytest.mark.parametrize("index", [1, 4, 6, 8], ids=lambda i: NAMES[i])
def test_load_next_to_a_model_config(config: Any, index: int, tmp_path: Path) -> None:
    """AutoTokenizer reads config.json first, and Llama and ESM have tokenizers of their own."""
    config().save_pretrained(tmp_path)
    tokenizer = BUILT[index][0]
    tokenizer.save_pretrained(tmp_path)
    assert api(load(tmp_path), "ACGTTGCATGNN", special=True) == api(tokenizer, "ACGTTGCATGNN", special=True)


LOAD_WITHOUT_DS4SCI = """
import json, sys
sys.modules["ds4sci"] = None  # importing it is an error
from transformers import AutoTokenizer
folders, text = json.loads(sys.argv[1]), sys.argv[2]
print(json.dumps([
    AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)(text)["input_ids"] for folder, remote in folders
]))
"""


def test_transformers_loads_all_kinds_without_ds4sci(tmp_path: Path) -> None:
    folders = []
    for (tokenizer, _), (_, options), name in zip(BUILT, CASES, NAMES, strict=True):
        tokenizer.save_pretrained(tmp_path / name)
        folders.append((str(tmp_path / name), options.get("stride", options.get("k")) != options.get("k")))
    text = "ACGTTGCATGNNACGATCGATTAGC"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_DS4SCI, json.dumps(folders), text],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [api(tokenizer, text, special=True) for tokenizer, _ in BUILT]


@each
def test_decoding_is_the_inverse_of_encoding(tokenizer: Any, kind: str) -> None:
    text = "ACGTTGCATAACACGATCGATTAGC"
    decoded = tokenizer.decode(api(tokenizer, text)).replace(" ", "")
    start, length = residue_encoder_of(tokenizer).token_spans(array(text))
    assert decoded == text[start[0] : start[-1] + length[-1]]
    special = tokenizer.decode(api(tokenizer, text, special=True), skip_special_tokens=True).replace(" ", "")
    assert special == decoded


def test_lower_case_is_read_as_upper_case() -> None:
    for tokenizer, kind in BUILT:
        encoder = residue_encoder_of(tokenizer)
        if kind == "byte":
            assert encoder.encode_residues(array("aA")).tolist() == [102, 70]
        else:
            np.testing.assert_array_equal(
                encoder.encode_residues(array("acgttgcanac")), encoder.encode_residues(array("ACGTTGCANAC"))
            )
    assert residue_encoder_of(BUILT[0][0]).encode_residues(array("j*L")).tolist() == [3, 3, 4]


def test_text_of_a_special_token_is_encoded_as_residues() -> None:
    tokenizer = BUILT[2][0]
    assert api(tokenizer, "<pad>") == [0]
    assert residue_encoder_of(tokenizer).encode_residues(array("<pad>")).tolist() == [65, 117, 102, 105, 67]


@pytest.mark.parametrize("code", [1, 2, 11, 25])
def test_codon_amino_acids_follow_the_genetic_code(code: int) -> None:
    tokenizer = build("codon", genetic_code=code)
    letters = codon_amino_acids(tokenizer)
    assert len(letters) == len(tokenizer)
    gene = "".join(np.random.default_rng(0).choice(list("ACGT"), 3000))
    ids = residue_encoder(tokenizer).encode_residues(array(gene))
    assert letters[ids].tobytes().decode() == str(Seq(gene).translate(table=code))
    assert not letters[:5].any()
    with pytest.raises(ValueError, match="kind 'codon'"):
        codon_amino_acids(build("nucleotide"))


def test_a_loaded_codon_tokenizer_keeps_its_genetic_code(tmp_path: Path) -> None:
    build("codon", genetic_code=2).save_pretrained(tmp_path)
    tokenizer = load(tmp_path)
    assert chr(codon_amino_acids(tokenizer)[api(tokenizer, "TGA")[0]]) == "W"
    assert chr(codon_amino_acids(build("codon"))[api(tokenizer, "TGA")[0]]) == "*"


def foreign(vocabulary: list[str], pattern: str) -> PreTrainedTokenizerFast:
    """A tokenizer without ds4sci's settings, such as that of a hub model."""
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_a_foreign_tokenizer_of_letters_gets_a_table() -> None:
    tokenizer = foreign(["[UNK]", *"TGCANXYZ"], ".")
    encoder = residue_encoder(tokenizer)
    assert isinstance(encoder.scheme, PerResidue)
    assert encoder.encode_residues(array("ACGTx?")).tolist() == [4, 3, 2, 1, 6, 0]
    assert not len(encoder.prefix) + len(encoder.suffix)


def test_a_foreign_tokenizer_of_words_is_called() -> None:
    """Single letters have tokens, but not where a word fits: the table would be wrong, so it is not used."""
    tokenizer = foreign(["[UNK]", *"ACGT", "ACG"], "ACG|.")
    encoder = residue_encoder(tokenizer)
    assert isinstance(encoder.scheme, TokenizerScheme)
    text = "TACGACCACGA"
    assert encoder.encode_residues(array(text)).tolist() == api(tokenizer, text) == [4, 5, 1, 2, 2, 5, 1]
    start, length = encoder.token_spans(array(text))
    assert start.tolist() == [0, 1, 4, 5, 6, 7, 10]
    assert length.tolist() == [1, 3, 1, 1, 1, 3, 1]
    with pytest.raises(ValueError, match="byte 200 at position 1"):
        encoder.encode_residues(np.array([65, 200], np.uint8))


def test_a_python_tokenizer_without_offsets(tmp_path: Path) -> None:
    """The tokenizer of the Nucleotide Transformer: EsmTokenizer over words of bases."""
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>", "ACG", "CGT", *"ATCGN"]))
    tokenizer = EsmTokenizer(str(file), eos_token=None)
    encoder = residue_encoder(tokenizer)
    assert isinstance(encoder.scheme, TokenizerScheme)
    assert encoder.encode_residues(array("ACGTNCGT")).tolist() == api(tokenizer, "ACGTNCGT") == [6, 9, 12, 7]
    start, length = encoder.token_spans(array("ACGTNCGT"))
    assert length.tolist() == [3, 1, 1, 3]
    assert start.tolist() == [0, 3, 4, 5]
    with pytest.raises(ValueError, match="do not spell the sequence"):
        encoder.token_spans(array("ACG?T T"))
    assert encoder.prefix.tolist() == [3]


def test_a_tokenizer_that_needs_spaces_gets_a_table() -> None:
    """Such as ProtBert's: without spaces it returns one [UNK] for a whole protein."""
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["[UNK]", *"LAGVX"])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert api(fast, "LAG") == [0]
    encoder = residue_encoder(fast)
    assert encoder.encode_residues(array("LAGvZ")).tolist() == [*api(fast, "L A G V"), 0] == [1, 2, 3, 4, 0]


def test_the_byte_tokenizer_of_transformers_gets_a_table() -> None:
    encoder = residue_encoder(ByT5Tokenizer())
    assert encoder.one_per_residue
    ids = encoder.encode_residues(array("MKt-"))
    assert encoder.wrap(ids).tolist() == ByT5Tokenizer()("MKt-")["input_ids"]
    with pytest.raises(ValueError, match=r"byte 10 .* at position 1 has no token"):
        PerResidue(np.where(np.arange(256) == 10, -1, 5).astype(np.int32)).ids(array("A\nA"))


def test_a_learned_vocabulary_is_called() -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    rng = np.random.default_rng(0)
    proteins = ["".join(rng.choice(list("LAGVSERTIDPKQNFYMHWC"), 200)) for _ in range(50)]
    tokenizer.train_from_iterator(proteins, trainers.BpeTrainer(vocab_size=60, special_tokens=["[UNK]"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    encoder = residue_encoder(fast)
    assert not encoder.one_per_residue
    ids = encoder.encode_residues(array(proteins[0]))
    assert ids.tolist() == api(fast, proteins[0])
    start, length = encoder.token_spans(array(proteins[0]))
    words = [proteins[0][a : a + n] for a, n in zip(start, length, strict=True)]
    assert words == fast.convert_ids_to_tokens(ids.tolist())
    assert max(map(len, words)) > 1


def test_settings_that_contradict_the_vocabulary_are_ignored() -> None:
    tokenizer = build("codon")
    tokenizer.init_kwargs["ds4sci"]["frame"] = 1
    encoder = residue_encoder(tokenizer)
    assert isinstance(encoder.scheme, TokenizerScheme)
    assert encoder.encode_residues(array("ATGTAA")).tolist() == [19, 53]


def test_error_messages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"'bpe'; expected one of {', '.join(KINDS)}"):
        build("bpe")
    with pytest.raises(ValueError, match="no option 'window'; it has k, stride, ends"):
        build("kmer", window=3)
    with pytest.raises(ValueError, match="no option 'k'; it has none"):
        build("esm", k=3)
    for kind, options, says in [
        ("kmer", {"k": 9}, "expected 1 to 8"),
        ("kmer", {"k": 3, "stride": 4}, "leave bases out"),
        ("codon", {"frame": 3}, "expected 0, 1 or 2"),
        ("codon", {"genetic_code": 7}, "NCBI has no such table"),
        ("nucleotide", {"ends": "both"}, "expected one of none, bos, eos, bos_eos"),
        ("kmer", {"k": 3, "stride": 1, "ends": "x"}, "expected one of none"),
    ]:
        with pytest.raises(ValueError, match=says):
            build(kind, **options)
    with pytest.raises(ValueError, match=r"no tokenizer_config\.json"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not JSON"):
        load(tmp_path)
    encoder = residue_encoder_of(BUILT[0][0])
    with pytest.raises(ValueError, match=r"got int64 \[2\]"):
        encoder.encode_residues(np.zeros(2, np.int64))


def test_a_dotted_kind_is_imported_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "tokens.py").write_text(
        "from ds4sci.data.tokenizers import build as ours\ndef build(k):\n    return ours('kmer', k=k)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert api(build("my_lab.tokens", k=2), "TT") == [25]
