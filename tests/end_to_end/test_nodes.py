"""Two nodes with a file system in common, each started once, by the Slurm script: the same model as on one machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from commands import Shop
from harness import ROOT

SRUN = """#!/bin/sh
# Every node's task, as srun starts them, on this machine.
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@"; first=$?
wait $other; second=$?
[ $first -gt $second ] && exit $first
exit $second
"""
SCONTROL = """#!/bin/sh
case "$*" in
  "show hostnames"*) printf 'localhost\\nother\\n' ;;
  requeue*) echo "again: $*" ;;
  *) exit 9 ;;
esac
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a job on two nodes, with one processor each, and the two programs that its script calls."""
    folder = tmp_path_factory.mktemp("slurm")
    launcher = f'#!/bin/sh\nexec "{sys.executable}" -m megatron_adapt "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("megatron-adapt", launcher)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        job = free.getsockname()[1] - 20000
    return {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": str(job % 10000), "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1",
    }  # fmt: skip


def submit(shop: Shop, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "examples/slurm/job.sh"), *words]
    return subprocess.run(command, cwd=shop.folder, env=environment, capture_output=True, text=True, timeout=300)


def test_two_nodes_do_what_one_machine_does(shop: Shop, model: Path, slurm: dict[str, str]) -> None:
    # Nothing is held out: each evaluation would start four more interpreters.
    tree = tiny.recipe(
        model={"source": str(model)}, vocabulary=None, phases=[tiny.phase("short", 4)], data={"german": {"path": "de.jsonl"}},
        evaluation=None,
    )
    tiny.write(shop.folder, tree, "nodes.yaml")
    shop.run("run", "nodes.yaml", "output=alone").succeeded()
    # One conversion, that to Hugging Face, shows what nodes do with steps of one rank; the other is taken over.
    shutil.copytree(shop / "alone/adapted/imported", shop / "together/adapted/imported")
    done = submit(shop, slurm, "nodes.yaml", "output=together")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "adapted/short (train, 2 ranks)" in done.stdout
    assert done.stdout.count("everything of 'tiny' is done.") == 1  # the first node speaks for all
    said = [line.removeprefix("[node 1] ") for line in done.stdout.splitlines() if line.startswith("[node 1] ")]
    assert said == [line for line in said if line.startswith("[")] + ["done"] and len(set(said)) == len(said)
    # Not of the first step: where this node is slow to start, that is done before.
    assert any(line.endswith("export (export): waits for node 0") for line in said), said
    assert any(line.endswith("adapted/short (train): runs rank 1 of 2") for line in said), said
    names = ["model/model.safetensors", "model/config.json", "data/base/german/text.bin"]
    assert [(shop / "together" / name).read_bytes() == (shop / "alone" / name).read_bytes() for name in names] == [True] * 3


def test_the_other_node_hears_of_an_error(shop: Shop, model: Path, slurm: dict[str, str]) -> None:
    """No launcher ends it: it ends by itself, with the words of the step that failed."""
    (shop.folder / "bad.jsonl").write_text('{"text": "gut"}\nnot JSON\n')
    tree = tiny.recipe(
        model={"source": str(model)}, vocabulary=None, phases=[tiny.phase("short", 4, data={"german": 1})],
        data={"german": {"path": "bad.jsonl"}}, output="failing", evaluation=None,
    )  # fmt: skip
    tiny.write(shop.folder, tree, "bad.yaml")
    command = [sys.executable, "-m", "megatron_adapt", "run", "bad.yaml", "--nnodes", "2"]
    environment = {**slurm, "SLURM_STEP_ID": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29400"}
    pipes = {"cwd": shop.folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    other = subprocess.Popen(command, env={**environment, "NODE_RANK": "1"}, **pipes)
    first = subprocess.Popen(command, env={**environment, "NODE_RANK": "0"}, **pipes)
    said, heard = (process.communicate(timeout=120)[1] for process in (first, other))
    assert (first.returncode, other.returncode) == (2, 1)
    assert "bad.jsonl" in said and heard == said.replace("error: ", "error: the first node failed: ", 1)


def test_a_job_that_was_stopped_queues_again(shop: Shop, slurm: dict[str, str], tmp_path: Path) -> None:
    for code, again in ((75, True), (143, True), (1, False), (2, False)):
        program = tmp_path / "megatron-adapt"
        program.write_text(f"#!/bin/sh\nexit {code}\n")
        program.chmod(0o755)
        done = submit(shop, {**slurm, "PATH": f"{tmp_path}:{slurm['PATH']}"}, "nodes.yaml")
        assert (done.returncode, "again: requeue" in done.stdout) == (code, again)
