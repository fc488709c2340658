# SPDX-License-Identifier: Apache-2.0
"""GitHub's workflows and the container files call what is there."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers.places import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
PROGRAMS = set(re.findall(r'"(dpt_\w+)": "dpt_ros', (ROOT / "setup.py").read_text("utf-8")))


def steps(workflow: Path) -> list[dict[str, object]]:
    jobs = yaml.safe_load(workflow.read_text("utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_there_are_workflows_for_changes_for_ros_and_for_the_night():
    assert {path.stem for path in WORKFLOWS} == {"ci", "nightly", "ros"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_script_that_a_workflow_calls_can_be_run(workflow):
    named = re.findall(r"run: (\.ci/\w+|scripts/\w+)", workflow.read_text("utf-8"))
    assert named
    assert [name for name in named if not os.access(ROOT / name, os.X_OK)] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_get_no_rights_and_no_credentials(workflow):
    text = workflow.read_text("utf-8")
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), action
        assert comment.startswith(" # "), f"{action} lacks its version"
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        if str(step.get("uses", "")).startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    jobs = yaml.safe_load(text)["jobs"]
    assert all("timeout-minutes" in job for job in jobs.values())


def test_the_images_copy_what_the_ignore_file_lets_through():
    allowed = (ROOT / "docker" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    for pattern in (line[1:] for line in allowed if line.startswith("!")):
        assert list(ROOT.glob(pattern)), pattern
    needed = re.findall(r'FOLDER / "([\w.]+)"', (ROOT / "setup.py").read_text("utf-8"))
    assert {f"!{name}" for name in [*needed, "dpt_ros", "launch", "config"]} <= set(allowed)


def test_containers_are_built_from_stages_and_start_programs_that_exist():
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert {"cpu", "cuda", "dev"} <= stages
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
    assert {service["command"][0] for service in compose["services"].values()} <= PROGRAMS
    assert compose["services"]["node"]["build"]["target"] in stages
    lines = (ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8").splitlines()
    dev = json.loads("\n".join(line for line in lines if "//" not in line))
    assert dev["build"]["target"] in stages
    assert (ROOT / ".devcontainer" / dev["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_an_image_runs_without_root_and_tells_its_health(stage):
    text = re.search(rf"^FROM base AS {stage}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)[1]
    assert "\nUSER 1000\n" in text
    assert "dpt_status --once" in text.partition("HEALTHCHECK")[2]


def test_torch_is_the_only_thing_that_the_image_for_the_cpu_takes_from_elsewhere(tmp_path):
    (scripts := tmp_path / "scripts").symlink_to(ROOT / "scripts")
    awk, sed = re.findall(r"(?:RUN |    )((?:awk|sed) .*?) && \\$", DOCKERFILE, re.M | re.S)
    for command in (awk, sed):
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    names = re.findall(r"^([\w.-]+)==", (scripts / "requirements.lock").read_text(), re.M)
    kept = re.findall(r"^([\w.-]+)==", (tmp_path / "cpu.lock").read_text(), re.M)
    torch = re.findall(r"^([\w.-]+)==\S+", (tmp_path / "torch.txt").read_text(), re.M)
    assert set(torch) == {"torch", "torchvision"}
    assert not set(torch) & set(kept)
    left_out = set(names) - set(kept) - set(torch)
    assert left_out
    assert all(re.match(r"nvidia-|cuda-|triton$", name) for name in left_out), left_out
    assert "--hash" not in (tmp_path / "torch.txt").read_text()


def test_a_commit_without_its_authors_sign_off_is_named(tmp_path):
    def git(*words: str) -> None:
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    identity = ["-c", "user.name=A. U. Thor", "-c", "user.email=author@example.org"]
    git("init", "--initial-branch=main")
    git("commit", "--allow-empty", "--message=first")
    git("tag", "base")
    check = [ROOT / "scripts" / "dco", "base"]
    git("commit", "--allow-empty", "--signoff", "--message=signed")
    signed = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert (signed.returncode, signed.stdout) == (0, "")
    git("commit", "--allow-empty", "--message=by another\n\nSigned-off-by: B <b@example.org>")
    unsigned = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert unsigned.returncode == 1
    assert "by another" in unsigned.stdout
    assert "Signed-off-by: A. U. Thor <author@example.org>" in unsigned.stdout
