"""The cluster used by the other tests of this folder, and Snakemake's SLURM executor on it."""

import subprocess
import sys
from pathlib import Path

import pytest
from jobs import finished, run, state, submit, wait_until


def printed(job: str, folder: Path) -> list[str]:
    return (folder / f"{job}.log").read_text().splitlines()


def node_states() -> dict[str, str]:
    lines = run("sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%N %T").splitlines()
    return dict(line.split() for line in lines)


def test_two_nodes_with_a_gpu_each_are_in_both_partitions(cluster):
    listed = run("sinfo", "--noheader", "--Node", "--format=%N %R %c %G").splitlines()
    assert sorted(line.split("(")[0] for line in listed) == [
        "n1 cpu 2 gpu:1",
        "n1 gpu 2 gpu:1",
        "n2 cpu 2 gpu:1",
        "n2 gpu 2 gpu:1",
    ]


def test_starting_a_running_cluster_changes_nothing(cluster):
    before = run("scontrol", "show", "config").splitlines()
    assert "2 of 2 nodes up" in run(cluster, "start")
    after = run("scontrol", "show", "config").splitlines()
    boot = [line for line in before if line.startswith("BOOT_TIME")]
    assert boot
    assert boot == [line for line in after if line.startswith("BOOT_TIME")]


def test_a_job_sees_the_callers_folder_and_python(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    job = submit("pwd; command -v python; echo $SLURM_JOB_PARTITION", tmp_path)
    assert finished(job) == "COMPLETED"
    assert printed(job, tmp_path) == [str(tmp_path), str(Path(sys.executable).parent / "python"), "cpu"]


def test_gpu_jobs_run_on_both_nodes_at_once_and_see_their_gpu(cluster, tmp_path):
    script = "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES; sleep 600"
    jobs = [submit(script, tmp_path, "--partition=gpu", "--gpus=1", "--nodes=1") for _ in range(2)]
    try:
        wait_until(lambda: all((tmp_path / f"{job}.log").exists() for job in jobs), 180, "both jobs run")
        wait_until(lambda: all(printed(job, tmp_path) for job in jobs), 60, "both jobs have printed")
        assert {state(job) for job in jobs} == {"RUNNING"}
        assert sorted(line for job in jobs for line in printed(job, tmp_path)) == ["n1 0", "n2 0"]
    finally:
        run("scancel", *jobs)
    assert [finished(job) for job in jobs] == ["CANCELLED", "CANCELLED"]


def test_a_failed_job_is_seen_to_have_failed(cluster, tmp_path):
    job = submit("echo the reason >&2; exit 3", tmp_path)
    assert finished(job) == "FAILED"
    assert printed(job, tmp_path) == ["the reason"]
    assert "ExitCode=3:0" in run("scontrol", "show", "job", job)


def test_a_requeued_job_runs_again(cluster, tmp_path):
    job = submit("echo run ${SLURM_RESTART_COUNT:-0}; sleep 600", tmp_path, "--requeue", "--open-mode=append")
    log = tmp_path / f"{job}.log"
    wait_until(lambda: log.exists() and "run 0" in log.read_text(), 180, "the first run")
    run("scontrol", "requeue", job)
    wait_until(lambda: "run 1" in log.read_text(), 180, "the second run")
    run("scancel", job)
    assert finished(job) == "CANCELLED"


def test_a_lost_node_ends_its_jobs_and_can_come_back(cluster, tmp_path):
    doomed = submit("echo runs; sleep 600", tmp_path, "--nodelist=n2", "--no-requeue")
    safe = submit("echo runs; sleep 600", tmp_path, "--nodelist=n1", "--no-requeue")
    logs = [tmp_path / f"{job}.log" for job in (doomed, safe)]
    try:
        # SLURM says so before a job's first command runs, which a busy machine may delay
        wait_until(lambda: {state(doomed), state(safe)} == {"RUNNING"}, 180, "both jobs run")
        wait_until(lambda: all(log.exists() and log.read_text() for log in logs), 180, "both have begun")
        run(cluster, "node", "n2", "stop")
        wait_until(lambda: node_states()["n2"].startswith("down"), 180, "n2 is down")
        assert finished(doomed) == "NODE_FAIL"
        assert state(safe) == "RUNNING"
        assert subprocess.run([cluster, "status"], capture_output=True).returncode == 1
    finally:
        run("scancel", doomed, safe)
        run(cluster, "node", "n2", "start")
    assert finished(submit("true", tmp_path, "--nodelist=n2")) == "COMPLETED"


SNAKEFILE = """
scattergather: split=2
localrules: all
rule all:
    input: "gathered.txt"
rule work:
    output: "part-{scatteritem}.txt"
    threads: 2
    resources: slurm_partition="gpu", gpu=1
    shell: "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES > {output}"
rule gathered:
    input: gather.split("part-{scatteritem}.txt")
    output: "gathered.txt"
    shell: "(sort {input}; echo $SLURM_JOB_PARTITION) > {output}"
"""

PROFILE = """
executor: slurm
jobs: 4
slurm-status-command: squeue
slurm-init-seconds-before-status-checks: 1
slurm-no-requeue: true
default-resources:
  slurm_partition: cpu
  nodes: 1
  mem_mb: 1000
  runtime: 10
"""


@pytest.fixture
def workflow(tmp_path) -> Path:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/profile.yaml").write_text(PROFILE)
    return tmp_path


def test_snakemake_scatters_gpu_jobs_over_both_nodes(cluster, workflow):
    run(sys.executable, "-m", "snakemake", "--profile", "profile", cwd=workflow, timeout=600)
    assert (workflow / "gathered.txt").read_text().splitlines() == ["n1 0", "n2 0", "cpu"]


def test_snakemake_says_which_job_failed_and_where_its_log_is(cluster, workflow):
    broken = SNAKEFILE.replace("echo $SLURMD_NODENAME", "echo no such volume >&2; exit 1; echo")
    (workflow / "Snakefile").write_text(broken)
    command = [sys.executable, "-m", "snakemake", "--profile", "profile"]
    done = subprocess.run(command, cwd=workflow, timeout=600, text=True, capture_output=True)
    assert done.returncode == 1
    assert "Error in rule work" in done.stderr
    logs = list((workflow / ".snakemake/slurm_logs/rule_work").rglob("*.log"))
    assert len(logs) == 2
    assert all("no such volume" in log.read_text() for log in logs)
