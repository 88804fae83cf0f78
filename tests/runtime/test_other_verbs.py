"""spec, features, plan, version, help."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from blackbox import ROOT, Bundle, Runtime, command_for_others, knarr_command, needs_busybox, needs_root

from knarr.spec.validate import config_findings, features_findings


def call(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 30, **more}
    done: subprocess.CompletedProcess[str] = subprocess.run([*knarr_command(), *words], check=False, **options)
    return done


def test_spec_writes_a_valid_document_and_never_over_another(tmp_path: Path) -> None:
    assert call("spec", cwd=tmp_path).returncode == 0
    document = json.loads((tmp_path / "config.json").read_text())
    assert config_findings(document) == []
    assert document["process"]["args"] == ["sh"]
    before = (tmp_path / "config.json").read_bytes()
    done = call("spec", "--bundle", str(tmp_path))
    assert done.returncode == 1
    assert "already exists (remove it first)" in done.stderr
    assert (tmp_path / "config.json").read_bytes() == before
    assert call("spec", "--bundle", str(tmp_path / "none")).returncode == 1


def test_spec_does_not_follow_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(tmp_path / "victim")
    assert call("spec", cwd=tmp_path).returncode == 1
    assert not (tmp_path / "victim").exists()


def test_spec_rootless_maps_the_caller(tmp_path: Path) -> None:
    assert call("spec", "--rootless", cwd=tmp_path).returncode == 0
    document = json.loads((tmp_path / "config.json").read_text())
    assert config_findings(document) == []
    assert {"type": "user"} in document["linux"]["namespaces"]
    assert document["linux"]["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]


@needs_root
@needs_busybox
def test_a_spec_runs_as_it_is(ours: Runtime, bundle: Bundle) -> None:
    assert call("spec", "--bundle", str(bundle.path)).returncode == 0
    bundle.config = json.loads((bundle.path / "config.json").read_text())
    bundle.config["process"].update(terminal=False)
    done = ours("run", "--bundle", bundle.write("sh", "-c", "echo it runs"), ours.new_id())
    assert (done.returncode, done.stdout) == (0, "it runs\n"), done.stderr


def test_features_say_what_is_so() -> None:
    done = call("features")
    document = json.loads(done.stdout)
    assert features_findings(document) == []
    assert document["linux"]["cgroup"]["systemd"] is True
    assert {"ro", "rro", "rbind", "rslave", "nosymfollow", "tmpcopyup"} <= set(document["mountOptions"])
    assert "SCMP_ACT_NOTIFY" in document["linux"]["seccomp"]["actions"]
    assert document["linux"]["seccomp"]["supportedFlags"] == document["linux"]["seccomp"]["knownFlags"]


@needs_busybox
def test_plan_names_the_field_of_each_operation_and_does_nothing(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.write("true")
    root = tmp_path / "state"
    text = call("--root", str(root), "plan", path)
    assert text.returncode == 0, text.stderr
    lines = [line.split(None, 1) for line in text.stdout.splitlines()]
    assert any(pair[0] == "/mounts/0" and "fstype=proc" in pair[1] for pair in lines)
    assert any(pair[0] == "/process/args" for pair in lines)
    document = json.loads(call("plan", "--format", "json", path).stdout)
    pointers = {operation["pointer"] for operation in document["operations"]}
    for pointer in pointers - {""}:
        assert resolves(bundle.config, pointer), pointer
    assert not root.exists()
    assert sorted(os.listdir(bundle.path)) == ["config.json", "rootfs"]


def resolves(document: object, pointer: str) -> bool:
    """Whether a JSON pointer leads somewhere in the document, or to a field that stands for its default."""
    at = document
    parts = pointer.split("/")[1:]
    for number, part in enumerate(parts):
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                return False
            at = at[int(part)]
        elif isinstance(at, dict):
            if part not in at:
                return number == len(parts) - 1 or part in {"hooks", "cgroupsPath"}
            at = at[part]
        else:
            return False
    return True


@needs_busybox
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_plan_needs_no_privilege() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        path = Bundle(folder / "bundle").write("true")
        words = [*command_for_others(folder), "plan", path]
        nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False, **nobody)
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr


def test_version_is_shaped_like_runcs() -> None:
    lines = call("--version").stdout.splitlines()
    assert re.fullmatch(r"knarr-runtime version \d+\.\d+\.\d+\S*", lines[0])
    assert re.fullmatch(r"spec: 1\.\d+\.\d+", lines[1])
    assert call("-v").stdout.splitlines() == lines


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["-h"], ["help"], ["create", "--help"], ["help", "exec"], ["exec", "-h"]]
)
def test_help(words: list[str]) -> None:
    done = call(*words)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: knarr-runtime")


def test_the_source_tree_is_what_was_asked() -> None:
    """The tests must not silently run another installation."""
    command = knarr_command()
    where = " ".join(command)
    assert str(ROOT) in where or sys.prefix in where or "KNARR_TEST_RUNTIME" in os.environ
