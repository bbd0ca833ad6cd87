"""``launch/slurm.sbatch`` with a fake Slurm: what it starts, and two nodes on loopback that train."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ds4sci.train import checkpoint
from ds4sci.train.distributed import free_port
from tests.support import rank_processes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
TWO_TASKS = """
shift
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks+=($!); done
echo "${tasks[@]}" > tasks
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""
"""An ``srun`` that starts its command twice, as on two nodes."""


class Cluster:
    """A Slurm whose ``srun`` records its arguments, then runs ``srun``; the nodes are two names of this machine."""

    def __init__(self, folder: Path, srun: str = 'eval "$TRAINING"') -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "bin").mkdir()
        (folder / "launch").symlink_to(ROOT / "launch")
        self.tool("scontrol", 'echo "scontrol $*" >> "$LOG"; [ "$1" = show ] && echo 127.0.0.1 && echo localhost; true')
        self.tool("srun", f'echo "srun $* OMP_NUM_THREADS=$OMP_NUM_THREADS" >> "$LOG"; {srun}')
        self.tool("python", f'exec {shlex.quote(sys.executable)} "$@"')
        self.tool("deepspeed", f'exec {shlex.quote(sys.executable)} -m deepspeed.launcher.runner "$@"')

    def tool(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def reach(self, step: int, steps: int = 100) -> str:
        """Return a shell command that writes a run at ``step`` of ``steps``."""
        source = self.folder / f"at{step}"
        (source / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
        (source / "config.json").write_text(json.dumps({"train": {"steps": steps}}), encoding="utf-8")
        return f"mkdir -p runs/fold; cp -r {source}/. runs/fold/"

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen:
        """Start the batch script."""
        self.log.write_text("", encoding="utf-8")
        own = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "LOG": str(self.log),
            "PYTHONPATH": str(ROOT),
            "PET_LOCAL_ADDR": "127.0.0.1",  # the name of a container may not resolve
            "MASTER_PORT": str(free_port()),
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_NAME": "fold",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
        }
        inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments], env=inherited | own | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def submit(self, training: str, what: str = "configs/fold/small.toml", **variables: str) -> tuple[int, str]:
        """Run the batch script; return its exit code and the recorded calls."""
        on_nodes = {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "32", "TRAINING": training}
        process = self.start(what, "train.steps=100", **on_nodes | variables)
        process.communicate(timeout=60)
        return process.returncode, self.log.read_text(encoding="utf-8")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_slurm_starts_an_agent_per_node_and_requeues(cluster: Cluster) -> None:
    code, calls = cluster.submit(cluster.reach(40) + "; exit 143")
    assert code == 0
    assert "python -m ds4sci.train.agent --nnodes=2 --nproc-per-node=8 --max-restarts=3" in calls
    assert "--rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:" in calls
    assert "launch/train.py --config configs/fold/small.toml train.name=fold train.steps=100" in calls
    assert "OMP_NUM_THREADS=4" in calls, "32 cores, 8 ranks; torchrun would use 1"
    notice = re.search(r"--signal=TERM@(\d+)", SCRIPT.read_text(encoding="utf-8"))
    assert notice is not None
    assert f"--shutdown-timeout={notice[1]}" in calls
    assert "scontrol requeue 7" in calls
    code, calls = cluster.submit(cluster.reach(100))
    assert code == 0
    assert "requeue" not in calls


def test_slurm_with_deepspeeds_launcher(cluster: Cluster) -> None:
    code, calls = cluster.submit("cat fold-7.hosts >> $LOG;" + cluster.reach(40), LAUNCHER="deepspeed")
    assert code == 0
    assert 'exec deepspeed --node_rank "$SLURM_NODEID" "$@"' in calls
    assert "--no_ssh --master_addr 127.0.0.1" in calls
    assert "launch/train.py --config configs/fold/small.toml train.name=fold train.steps=100" in calls
    assert "127.0.0.1 slots=8\nlocalhost slots=8\n" in calls
    assert "OMP_NUM_THREADS=4" in calls
    assert "scontrol requeue 7" in calls
    assert not list(cluster.folder.glob("*.hosts"))


def test_slurm_resumes_a_run_folder_with_other_settings(cluster: Cluster) -> None:
    subprocess.run(["bash", "-c", cluster.reach(40)], cwd=cluster.folder, check=True)
    code, calls = cluster.submit("exit 0", "runs/fold")
    assert code == 1, "no progress"
    assert "launch/train.py --resume runs/fold train.steps=100" in calls


def test_slurm_does_not_requeue_without_progress(cluster: Cluster) -> None:
    code, calls = cluster.submit("exit 2")
    assert (code, "requeue" in calls) == (2, False)
    cluster.submit(cluster.reach(40))
    code, calls = cluster.submit("exit 1")
    assert (code, "requeue" in calls) == (1, False)


@pytest.fixture
def nodes(tmp_path: Path) -> Cluster:
    """Two nodes of one rank each, and a run file of the faulty task."""
    settings = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0}
    adam = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}}}
    (tmp_path / "ds.json").write_text(json.dumps(settings | adam))
    (tmp_path / "toy.toml").write_text(
        'deepspeed = "ds.json"\n[task]\nname = "tests.support.faulty_task"\n'
        "[train]\nsteps = 12\nsave_every = 5\nlog_every = 1\n[data]\nstep_seconds = 0.0\n"
    )
    return Cluster(tmp_path, TWO_TASKS)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def steps_done(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def resume(nodes: Cluster, *overrides: str) -> str:
    """Go on with the run as the requeued job does, but with forked ranks; return the output."""
    arguments = ["--config", "toy.toml", "train.name=fold", *overrides]
    return rank_processes.run(2, arguments, nodes.folder).output


@pytest.mark.nightly
def test_two_nodes_of_deepspeeds_launcher_train_and_end_after_a_kill(nodes: Cluster) -> None:
    fault = 'faults=[{rank=1, step=7, phase="step", kind="kill"}]'
    process = nodes.start("toy.toml", fault, LAUNCHER="deepspeed")
    wait_until((nodes.folder / "fault_0").exists, process)
    killed = time.monotonic()
    output, _ = process.communicate(timeout=240)
    assert time.monotonic() - killed < 60
    assert process.returncode == 0, output
    assert "step 0 of 12: 2 × cpu" in output
    assert "error: rank 0: lost the connection to another rank" in output
    assert "saved at step 5 of 12; requeueing the job" in output
    assert "step 5 of 12" in resume(nodes, fault)
    assert checkpoint.checkpoint_steps(nodes.folder / "runs/fold")[-1] == 12


@pytest.mark.slow
def test_two_nodes_of_agents_train_through_a_kill_and_stop_at_the_time_limit(nodes: Cluster) -> None:
    overrides = ['faults=[{rank=1, step=7, phase="step", kind="kill"}]', "data.step_seconds=0.05"]
    run = nodes.folder / "runs/fold"
    process = nodes.start("toy.toml", *overrides, "train.steps=400")
    wait_until(lambda: (nodes.folder / "fault_0").exists() and steps_done(run) > 12, process)
    for task in (nodes.folder / "tasks").read_text().split():  # as Slurm does before the time limit
        os.kill(int(task), signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "rank 1 was killed by SIGKILL" in output
    assert "Resuming tests.support.faulty_task (178 parameters) in runs/fold, step 5 of 400: 2 × cpu" in output
    assert "Stopped after step" in output
    assert "scontrol requeue 7" in nodes.log.read_text()
    stopped = checkpoint.checkpoint_steps(run)[-1]
    assert 12 < stopped < 400
    assert f"step {stopped} of {stopped + 1}" in resume(nodes, *overrides, f"train.steps={stopped + 1}")
