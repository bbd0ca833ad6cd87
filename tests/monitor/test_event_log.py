"""Event log of a rank: complete lines after a kill, thinning of samples, resumed files, disks that are full."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ds4sci.monitor.event_log import EventLog, log_file, read_events


def test_lines_are_read_back(tmp_path: Path) -> None:
    log = EventLog(log_file(tmp_path, 3), 3, 1)
    log.write("begin", name="train", step=5, loss=float("nan"))
    log.write("message", name="note", path=Path("x"))
    log.close()
    log.write("message", name="after the end")
    first, second = read_events(tmp_path / "monitor" / "rank_3.jsonl")
    assert abs(first.pop("time") - time.time()) < 60
    assert first == {"rank": 3, "attempt": 1, "kind": "begin", "name": "train", "step": 5, "loss": "nan"}
    assert second["path"] == "x"


def test_a_killed_writer_loses_no_complete_line(tmp_path: Path) -> None:
    file = tmp_path / "rank_0.jsonl"
    code = (
        "import sys; from pathlib import Path; from ds4sci.monitor.event_log import EventLog\n"
        "log = EventLog(Path(sys.argv[1]), 0, 0)\n"
        "for i in range(10**9):\n    log.write('sample', number=i); print(i, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 500:
                break
        process.send_signal(signal.SIGKILL)
    numbers = [event["number"] for event in read_events(file)]
    assert numbers[:501] == list(range(501))
    assert numbers == list(range(len(numbers)))


def test_a_resumed_file_ends_the_line_that_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "rank_0.jsonl"
    log = EventLog(file, 0, 0)
    log.write("sample", number=0)
    log.close()
    with file.open("a") as handle:
        handle.write('{"time": 1.0, "rank": 0, "att')
    log = EventLog(file, 0, 1)
    log.write("sample", number=1)
    log.close()
    assert [(event["attempt"], event["number"]) for event in read_events(file)] == [(0, 0), (1, 1)]


def test_samples_are_thinned_and_events_stay(tmp_path: Path) -> None:
    file = tmp_path / "rank_0.jsonl"
    log = EventLog(file, 0, 0, max_samples=64)
    taken = []
    for number in range(2000):
        if number % log.stride == 0:  # as the sampling thread does
            log.write("sample", number=number)
            taken.append(number)
        if number % 100 == 0:
            log.write("begin", name="train", step=number)
    events = list(read_events(file))
    samples = [event["number"] for event in events if event["kind"] == "sample"]
    assert 32 <= len(samples) < 64
    assert len(taken) < 400
    assert log.stride == 32
    assert {b - a for a, b in itertools.pairwise(samples)} == {32}, "samples must stay evenly spaced"
    assert [event["step"] for event in events if event["kind"] == "begin"] == list(range(0, 2000, 100))
    log.close()
    assert EventLog(file, 0, 1, max_samples=64).stride == 32, "a resumed run samples as often as before"


def test_a_full_disk_gives_one_warning(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from ds4sci.monitor.event_log import EventLog\n"
        "log = EventLog(Path(sys.argv[1]), 0, 0)\n"
        "log.write('message', name='first')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "for i in range(50): log.write('message', name='more')\n"
        "print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rank_0.jsonl")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "alive"
    assert done.stderr.count("will have gaps") == 1
    events = list(read_events(tmp_path / "rank_0.jsonl"))
    assert [event["name"] for event in events][:2] == ["first", "more"]


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.warns(UserWarning, match="will have gaps"):
        log = EventLog(tmp_path / "monitor" / "rank_0.jsonl", 0, 0)
    log.write("message", name="x")
    tmp_path.chmod(0o700)


def test_lines_of_other_programs_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rank_0.jsonl"
    line = {"time": 1.0, "rank": 0, "attempt": 0, "kind": "message", "name": "x"}
    file.write_bytes(b'[1]\nnull\n{"time": 2}\n\xff\xfe\n' + json.dumps(line).encode() + b"\n")
    assert list(read_events(file)) == [line]
