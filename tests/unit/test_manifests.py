# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' manifests: its own schemas, what the pods then run, and the images' files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertbench.benchmarks.bert_pretraining.launch import read
from bertbench.common.launch.launcher import plan

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "scripts" / "kubernetes"
REPORT = {
    "cores": 8,
    "backends": [
        {"name": "cpu_ref", "ok": True, "accelerator": False, "device_count": 1, "device": "CPU",
         "precisions": ["fp32", "bf16"]},
        {"name": "cuda", "ok": True, "accelerator": True, "device_count": 8, "device": "a GPU",
         "precisions": ["fp32", "bf16"]},
    ],
}  # fmt: skip


def documents(name: str) -> dict[str, Any]:
    """Return the documents of a manifest by their kinds."""
    found = list(yaml.safe_load_all((KUBERNETES / name).read_text()))
    assert len({d["kind"] for d in found}) == len(found)
    return {d["kind"]: d for d in found}


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [(f, k) for f in ("indexed-job.yaml", "pytorchjob.yaml") for k in documents(f)],
)
def test_kubernetes_takes_it(name: str, kind: str, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    content = documents(name)[kind]
    if kind == "PyTorchJob":  # the operator's; its pods are Kubernetes'
        replicas = content["spec"]["pytorchReplicaSpecs"]
        assert set(replicas) == {"Master", "Worker"} and replicas["Master"]["replicas"] == 1
        for replica in replicas.values():
            assert [c["name"] for c in replica["template"]["spec"]["containers"]] == ["pytorch"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}}
            validate.validate(pod | {"spec": replica["template"]["spec"]}, version, strict=True)
        return
    validate.validate(content, version, strict=True)
    if kind == "Job":
        job = content["spec"]
        job["completionsMode"] = job.pop("completionMode")
        with pytest.raises(validate.ValidationError):
            validate.validate(content, version, strict=True)


def planned(environment: dict[str, str]) -> str:
    request = read(environment["FLAGS"].split(), environment)
    launch = plan(request, environment, REPORT, "/venv/bin/python")
    return " ".join(launch.command)


def test_the_pods_of_an_indexed_job_are_one_run() -> None:
    found = documents("indexed-job.yaml")
    job, values = found["Job"]["spec"], found["ConfigMap"]["data"]
    container = job["template"]["spec"]["containers"][0]
    environment = values | {e["name"]: e["value"] for e in container["env"]}
    assert job["completions"] == job["parallelism"] == int(values["NNODES"])
    service = found["Service"]
    host = f"{found['Job']['metadata']['name']}-0.{service['metadata']['name']}"
    assert environment["MASTER_ADDR"] == host
    assert job["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    selector = service["spec"]["selector"]["batch.kubernetes.io/job-name"]
    assert selector == found["Job"]["metadata"]["name"]
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    command = planned(environment | pod)
    assert f"--nnodes=2 --node-rank=1 --master-addr={host} --master-port=29500" in command
    assert service["spec"]["ports"][0]["port"] == 29500


def test_the_pods_of_a_pytorchjob_are_one_run() -> None:
    found = documents("pytorchjob.yaml")
    job = found["PyTorchJob"]["spec"]
    operator = {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1", "MASTER_ADDR": "bertbench-master-0",
        "MASTER_PORT": "23456", "RANK": "1", "WORLD_SIZE": "16", "PET_NNODES": "2",
        "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": job["nprocPerNode"],
    }  # fmt: skip
    command = planned(found["ConfigMap"]["data"] | operator)
    assert "--nproc-per-node=8 --nnodes=2 --node-rank=1 --master-addr=bertbench-master-0" in command


@pytest.mark.parametrize("saved", [False, True])
def test_a_pod_that_comes_back_resumes(tmp_path: Path, saved: bool) -> None:
    script, output = tmp_path / "script.sh", tmp_path / "results"
    script.write_text('echo "$@"\n')
    if saved:
        (output / "system/benchmark/run/checkpoints/step_00000020").mkdir(parents=True)
    done = subprocess.run(
        ["bash", str(KUBERNETES / "run.sh")], capture_output=True, text=True, check=True,
        env={**os.environ, "SCRIPT": str(script), "FLAGS": "--seed 1", "OUTPUT": str(output)},
    )  # fmt: skip
    resumed = ["--resume", "last"] if saved else []
    assert done.stdout.split() == ["--seed", "1", *resumed, "--output_dir", str(output)]


def test_a_pod_without_a_script_is_one_line() -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("SCRIPT", "OUTPUT")}
    done = subprocess.run(
        ["bash", str(KUBERNETES / "run.sh")], capture_output=True, text=True, env=env
    )
    assert done.returncode and "set SCRIPT in the ConfigMap" in done.stderr


@pytest.mark.parametrize("name", ["cpu", "nvidia"])
def test_the_files_of_an_image_exist(name: str) -> None:
    lines = (ROOT / "scripts" / "docker" / f"{name}.Dockerfile").read_text().splitlines()
    command = next(line for line in lines if line.startswith("CMD"))
    assert (ROOT / command.split('"')[3]).is_file()
    script = next(line for line in lines if "SCRIPT=" in line).partition("SCRIPT=")[2].split()[0]
    assert (ROOT / script).is_file()
    assert any(line.startswith("FROM python:3.1") for line in lines)
