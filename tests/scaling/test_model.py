"""Times of collectives and steps against values by hand, their limits, and the bytes that the planner counts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ds4sci.planner.states import Sizes, zero_traffic
from ds4sci.scaling import cluster as clusters
from ds4sci.scaling import published
from ds4sci.scaling.batch_plan import plan
from ds4sci.scaling.calibration import fit_link
from ds4sci.scaling.cluster import ClusterConfig
from ds4sci.scaling.collectives import (
    OPERATIONS,
    Link,
    Placement,
    bytes_sent,
    hierarchical_all_reduce,
    pairwise_all_to_all,
    ring_all_reduce,
    ring_half,
    seconds,
    tensor_bytes,
    tree_all_reduce,
)  # fmt: skip
from ds4sci.scaling.samples_to_quality import Point, fit
from ds4sci.scaling.step_time import Exchange, Workload, expected_maximum, step_time
from ds4sci.scaling.workload import Counter, zero_exchanges

ROOT = Path(__file__).parents[2]
LINK = Link(1e-5, 1e9)


def cluster(**changes: Any) -> ClusterConfig:
    """A cluster of 4 nodes with 4 GPUs, with round numbers."""
    tree = {
        "name": "test", "nodes": 4, "gpus_per_node": 4, "peak": {"bf16": 1e12, "fp32": 1e12}, "achievable": 0.5,
        "memory_gb": 80, "memory_bandwidth": 1e12, "intra_node": {"alpha": 1e-6, "bandwidth": 1e11},
        "inter_node": {"alpha": 1e-5, "bandwidth": 4e9}, "storage": {"bandwidth": 1e9, "node_bandwidth": 1e9},
        "step_noise": 0.0,
    }  # fmt: skip
    return ClusterConfig.model_validate(tree | changes)


def test_formulas_by_hand() -> None:
    assert ring_all_reduce(1e9, 4, LINK) == pytest.approx(6e-5 + 1.5)
    assert tree_all_reduce(1e3, 8, LINK) == pytest.approx(6e-5 + 2e-6)
    assert ring_half(1e9, 4, LINK) == pytest.approx(3e-5 + 0.75)
    assert pairwise_all_to_all(1e9, 4, LINK) == pytest.approx(3e-5 + 0.75)
    place = Placement(8, 4, Link(0, 1e10), Link(0, 1e9))
    # reduce-scatter and all-gather of 3/4 in the node, a ring of two nodes on a quarter of the tensor
    assert hierarchical_all_reduce(4e9, place) == pytest.approx(2 * 3e9 / 1e10 + 1e9 / 1e9)
    assert seconds("send-receive", 1e9, place) == pytest.approx(1.0)
    # 3/8 of the data goes to the node's own ranks, 4/8 to the other node: the slower wire counts
    assert seconds("all-to-all", 8e9, place) == pytest.approx(max(3e9 / 1e10, 4e9 / 1e9))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_limits(operation: str) -> None:
    one = Placement(1, 1, LINK, LINK)
    assert seconds(operation, 1e9, one) == 0 == bytes_sent(operation, 1e9, 1)
    times = [seconds(operation, size, cluster().placement(16)) for size in (0, 1e3, 1e6, 1e9)]
    assert times == sorted(times)
    assert times[0] > 0, "a message without data still has its latency"
    assert tensor_bytes(operation, bytes_sent(operation, 1e6, 7), 7) == pytest.approx(1e6)


def test_small_messages_take_the_tree_and_large_ones_the_ring() -> None:
    place = Placement(64, 1, LINK, LINK)
    assert seconds("all-reduce", 8, place) == pytest.approx(tree_all_reduce(8, 64, LINK))
    assert seconds("all-reduce", 1e10, place) == pytest.approx(ring_all_reduce(1e10, 64, LINK))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bytes_are_those_of_the_planner(stage: int) -> None:
    tree = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}}
    traffic = zero_traffic(Sizes(2 * 10**9, 2 * 10**9, 10**8), tree, 8, 3)
    made = zero_exchanges(traffic, tree, 8)
    assert {one.name: pytest.approx(bytes_sent(one.operation, one.size, 8)) for one in made} == traffic
    assert zero_exchanges(zero_traffic(Sizes(10, 10, 10), tree, 1, 1), tree, 1) == []


def test_groups_with_a_stride_share_fewer_nodes() -> None:
    whole, strided = cluster().placement(16), cluster().placement(4, stride=4)
    assert (whole.per_node, whole.nodes, strided.per_node, strided.nodes) == (4, 4, 1, 4)
    assert whole.inter.bandwidth == 1e9, "the node's network is divided among its GPUs"


def test_expected_maximum() -> None:
    """Exact: 0, 1/√π, 3/(2√π) for one, two and three numbers; tables for more."""
    exact = [0.0, 1 / math.sqrt(math.pi), 1.5 / math.sqrt(math.pi)]
    assert [expected_maximum(n) for n in (1, 2, 3)] == pytest.approx(exact, abs=1e-6)
    assert expected_maximum(100) == pytest.approx(2.50759, abs=1e-4)
    assert expected_maximum(1000) == pytest.approx(3.24144, abs=1e-4)


def test_step_time_by_hand() -> None:
    work = Workload(
        16, 32, 5e11, 4e11, "bf16", state_bytes=1e9, stages=4, micro_batches=8, read_bytes=1e8,
        exchanges=(Exchange("gradients", "all-reduce", 1e9, 1, 16, overlaps=True),),
    )  # fmt: skip
    step = step_time(work, cluster(step_noise=0.1))
    assert step.terms["compute"] == pytest.approx(1.0)
    assert step.terms["optimizer"] == pytest.approx(1e-3)
    assert step.terms["pipeline bubble"] == pytest.approx(3 / 8)
    assert step.terms["stragglers"] == pytest.approx(0.1 * expected_maximum(16))
    assert step.terms["communication"] == pytest.approx(seconds("all-reduce", 1e9, cluster().placement(16)))
    assert step.hidden == 0
    assert step.terms["input"] == pytest.approx(max(0.0, 16 * 1e8 / 1e9 - (step.seconds - step.terms["input"])))
    assert step.utilization == pytest.approx(4e11 / (1e12 * step.seconds))
    hidden = step_time(work, cluster(overlap=1.0))
    assert hidden.terms["communication"] == pytest.approx(0)
    assert hidden.hidden == pytest.approx(step.communication["gradients"])


def test_sharing_an_example_divides_all_but_the_undivided_part() -> None:
    work = Workload(8, 1, 1e11, 1e11, "bf16", sharing=8, undivided=0.25)
    alone = 8 * 1e11 / 5e11
    assert step_time(work, cluster()).seconds == pytest.approx(alone * (0.25 + 0.75 / 8))


def test_links_are_recovered_from_times() -> None:
    sizes = [1e3, 1e5, 1e7]
    made = fit_link(sizes, [ring_all_reduce(size, 4, LINK) for size in sizes], 4)
    assert (made.alpha, made.bandwidth) == (pytest.approx(LINK.alpha), pytest.approx(LINK.bandwidth))


def test_samples_to_quality_are_recovered() -> None:
    law = fit([Point(b, 1000 * (1 + b / 64)) for b in (8, 32, 128)])
    assert (law.minimum, law.critical_batch) == (pytest.approx(1000), pytest.approx(64))
    assert law.leave_one_out == pytest.approx(0, abs=1e-9)
    off = fit([Point(8, 1125), Point(32, 1500), Point(128, 6000)])
    assert off.leave_one_out is not None
    assert off.errors[128] == pytest.approx(3000 / 6000 - 1)
    with pytest.raises(ValueError, match=r"1 batch size\(s\).*train_batch_size"):
        fit([Point(8, 1), Point(8, 2)])


def test_published_points_are_predicted_without_themselves() -> None:
    points = published.read_points()
    before = {(one.point, one.figure): one for one in published.compare_all(points)}
    errors = {key: abs(one.error) for key, one in before.items()}
    assert max(value for key, value in errors.items() if key[1] == "step") < 0.15
    assert max(value for key, value in errors.items() if key[1] == "of peak") < 0.15
    # changing a published result changes its error, not its prediction
    eos = points["openfold"]["systems"][4]
    eos["step_seconds"], eos["samples"], eos["eval_seconds"], eos["startup_seconds"] = 9.0, 1.0, 99.0, 99.0
    points["language_models"]["models"][0]["utilization"] = 0.2
    after = {(one.point, one.figure): one for one in published.compare_all(points)}
    for key in [(f"OpenFold, {eos['name']}", figure) for figure in ("step", "samples to quality", "time to quality")]:
        assert after[key].predicted == before[key].predicted
    gpt = next(key for key in before if key[0].startswith("GPT 22B"))
    assert after[gpt].predicted == before[gpt].predicted
    assert after[gpt].error != before[gpt].error


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "clusters").glob("*.toml")), ids=lambda file: file.stem)
def test_cluster_files(file: Path) -> None:
    made = clusters.load(file)
    assert made.sources
    assert made.placement(made.gpus_per_node).nodes == 1


def test_cluster_file_is_refused_with_key_and_reason(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "clusters" / "eos.toml").read_text()
    file = tmp_path / "own.toml"
    file.write_text(text.replace("achievable = 0.4", "achievable = 1.4\nspeed = 3"))
    with pytest.raises(ValueError, match=r"own\.toml: achievable: .*less than or equal to 1; speed: Extra"):
        clusters.load(file)
    file.write_text("name = ")
    with pytest.raises(ValueError, match=r"own\.toml: not TOML"):
        clusters.load(file)
    with pytest.raises(ValueError, match="no peak for bf16"):
        cluster(peak={"fp32": 1e12}).peak_of("bf16")


def write_llama(folder: Path) -> Path:
    """Write a run file of a Llama with two layers, and return its path. Its data does not exist."""
    model = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320,
        "num_key_value_heads": 4, "intermediate_size": 128, "max_position_embeddings": 512,
    }  # fmt: skip
    (folder / "ds.json").write_text(json.dumps({
        "train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "zero_optimization": {"stage": 1},
    }))  # fmt: skip
    lines = ['deepspeed = "ds.json"', '[task]\nname = "causal_lm"', "[train]\nsteps = 1", "[model.config]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in model.items()]
    lines += ['[data]\npath = "absent.fa"\ntokenizer = { kind = "byte" }', "[[data.phases]]\nlength = 256"]
    file = folder / "run.toml"
    file.write_text("\n".join(lines))
    return file


def test_work_of_a_run_file(tmp_path: Path) -> None:
    """FLOPs of a Llama by the usual formula, and ZeRO's bytes; more ranks trace nothing again."""
    counter = Counter(write_llama(tmp_path), (), cluster())
    made = [counter.count(plan(counter.config, "weak", ranks)) for ranks in (4, 16)]
    tokens, h, f, layers, vocabulary = 256, 64, 128, 2, 320
    products = 6 * tokens * (layers * (4 * h * h + 3 * h * f) + h * vocabulary)
    attention = 7 * 2 * layers * h * tokens * (tokens + 1) // 2  # two products forward, five backward, causal
    assert made[0].workload.model_flops == pytest.approx(products + attention, rel=1e-3)
    assert made[0].workload.flops == made[1].workload.flops
    assert made[1].workload.samples == 16
    for one, ranks in zip(made, (4, 16), strict=True):
        sent = {x.name: round(bytes_sent(x.operation, x.size, ranks)) for x in one.workload.exchanges}
        assert sent == one.traffic
        assert set(sent) == {"reduce-scatter of gradients", "all-gather of weights"}


def test_work_of_pipeline_stages(tmp_path: Path) -> None:
    """The slower of two stages has a layer and the head; hidden states travel forward, and their gradients back."""
    file = write_llama(tmp_path)
    whole = Counter(file, (), cluster())
    staged = Counter(file, ("parallel.pipeline=2",), cluster())
    one = whole.count(plan(whole.config, "weak", 4, batch=8)).workload
    counted = staged.count(plan(staged.config, "weak", 8, batch=8))
    two = counted.workload
    assert (two.samples, two.stages, two.micro_batches) == (one.samples, 2, 8)
    assert two.model_flops == pytest.approx(one.model_flops / 2)
    layer, head = 4 * 64 * 64 + 3 * 64 * 128 + 64 * 257, 64 * 320  # products of a token; attention over half of 256
    assert two.flops / one.flops == pytest.approx((layer + head) / (2 * layer + head), rel=0.01)
    (sent,) = [x for x in two.exchanges if x.name == "pipeline"]
    assert (sent.size, sent.calls, sent.ranks, sent.stride) == (2 * 8 * 256 * 64 * 4, 16, 2, 4)
    assert counted.traffic["send-receive of activations"] == 8 * 256 * 64 * 4
    assert step_time(two, cluster()).terms["pipeline bubble"] == pytest.approx(
        step_time(two, cluster()).terms["compute"] / 8
    )
    reduced = {x.name: x.size for x in one.exchanges}["reduce-scatter of gradients"]
    own = {x.name: x.size for x in two.exchanges}["reduce-scatter of gradients"]
    assert 0.5 < own / reduced < 0.6, "gradients of the larger stage only, among its four ranks"
