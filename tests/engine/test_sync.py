"""``knarr image sync``: lists right and wrong, and what they bring where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from test_registries import host, layout, no_logins

import knarr
from knarr.base.errors import FileError, NotFound, SpecError
from knarr.engine.paths import places
from knarr.engine.sync import Job, jobs_of, read_list, sync

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["host", "layout", "no_logins"]  # fixtures


def entries(tmp_path: Path, text: str, target: str = "") -> list[Job]:
    (tmp_path / "list.yaml").write_text(text)
    return [job for entry in read_list(str(tmp_path / "list.yaml"), target) for job in jobs_of(entry)]


def pairs(jobs: list[Job]) -> list[tuple[str, str]]:
    return [(job.source, job.target) for job in jobs]


DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "target", "result"),
    [
        ("- {from: 'a.io/b:1', to: c.io/d}", "", [("a.io/b:1", "c.io/d:1")]),
        ("- {from: 'a.io/b:1', to: 'c.io/d:2'}", "", [("a.io/b:1", "c.io/d:2")]),
        ("- {from: a.io/b, tags: ['1', '2'], to: c.io/d}", "", [("docker://a.io/b:1", "c.io/d:1"), ("docker://a.io/b:2", "c.io/d:2")]),
        ("- {from: busybox, tags: [a]}", "h:5000/m", [("docker://docker.io/library/busybox:a", "h:5000/m/library/busybox:a")]),
        (f"- {{from: 'a.io/b@{DIGEST}', to: c.io/d}}", "", [(f"a.io/b@{DIGEST}", f"c.io/d@{DIGEST}")]),
        (f"- {{from: a.io/b, tags: ['{DIGEST}']}}", "dir:/x", [(f"docker://a.io/b@{DIGEST}", f"dir:/x/a.io/b:{DIGEST.replace(':', '-')}")]),
        ("- {from: 'a.io/b:1'}", "oci:/x", [("a.io/b:1", "oci:/x:a.io/b:1")]),
        ("- {from: 'a.io/b:1', to: 'oci:/x'}", "", [("a.io/b:1", "oci:/x:1")]),
        ("- {from: 'a.io/b:1', to: 'oci:/x:y'}", "", [("a.io/b:1", "oci:/x:y")]),
        ("- {from: 'oci:/x:v1', to: 'c.io/d:2'}", "", [("oci:/x:v1", "c.io/d:2")]),
        ("a.io:\n  images:\n    b: ['1', '2']\n    c/d: ['3']\n", "h:5000/m",
         [("docker://a.io/b:1", "h:5000/m/b:1"), ("docker://a.io/b:2", "h:5000/m/b:2"), ("docker://a.io/c/d:3", "h:5000/m/c/d:3")]),
    ],
)  # fmt: skip
def test_what_a_list_means(tmp_path: Path, text: str, target: str, result: list[tuple[str, str]]) -> None:
    assert pairs(entries(tmp_path, text, target)) == result


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must be a list"),
        ("[]", "names nothing to copy"),
        ("just text", "must be a list"),
        ("- a: [", "is not YAML"),
        ("- {from: x, from: y}", "a key is given twice"),
        ("- !!python/object/apply:os.system ['true']", "is not YAML"),
        ("- 1", "/0: must be a mapping"),
        ("- {to: x}", "/0/from: must be a text"),
        ("- {from: x}", "/0/to: is missing"),
        ("- {from: x, to: y, tag: z}", "/0/tag: is not known; there is from"),
        ("- {from: x, to: y, tags: [1.0]}", "/0/tags: must be a list of texts"),
        ("- {from: x, to: y, tags: a}", "/0/tags: must be a list of texts"),
        ("- {from: x, to: y, match: '('}", "/0/match: is no regular expression"),
        ("- {from: x, to: y, match: a, tags: [b]}", "/0/match: cannot stand beside tags"),
        ("- {from: UPPER, to: y}", "/0/from: 'UPPER': .*capital"),
        ("- {from: x, to: y, referrers: maybe}", "/0/referrers: must be true or false"),
        ("- {from: x, to: y, platforms: linux}", "/0/platforms: must be a list"),
        ("quay.io: {images: {x: ['1']}}", "/quay.io: needs a target"),
        ("quay.io: {credentials: {}}", "/quay.io/credentials: log in with knarr login"),
        ("? [a]\n: b", "is not YAML|must be a registry"),
    ],
)
def test_lists_that_are_wrong(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        entries(tmp_path, text)
    assert str(tmp_path / "list.yaml") in str(caught.value)
    assert str(caught.value).isprintable()


def test_all_findings_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        entries(tmp_path, "- {from: x}\n- {to: y}\n- 3\n")
    assert [finding.pointer for finding in caught.value.findings] == ["/0/to", "/1/from", "/2"]


def test_lists_that_are_too_much(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    )
    with pytest.raises(SpecError):
        entries(tmp_path, bomb)
    with pytest.raises(SpecError):
        entries(tmp_path, "[" * 50_000)
    with pytest.raises(FileError, match="at most"):
        entries(tmp_path, "#" * (2 << 20))


def test_a_mirror(host: str, layout: str, tmp_path: Path) -> None:
    digests = {}
    for tag in ("1.0", "1.1", "2.0", "rc"):
        digests[tag] = knarr.copy(layout, f"docker://{host}/src/app:{tag}").digest
    text = f"- {{from: '{host}/src/app', match: '^[0-9.]+$', to: '{host}/dst/app'}}\n- {{from: '{host}/src/none', to: '{host}/x'}}\n"
    (tmp_path / "list.yaml").write_text(text)
    told: list[str] = []
    done = sync(places(), read_list(str(tmp_path / "list.yaml")), told=lambda one: told.append(one.job.target))
    assert {one.job.target.rpartition(":")[2]: one.copied.digest for one in done if one.copied} == {
        tag: digests[tag] for tag in ("1.0", "1.1", "2.0")
    }
    assert [type(one.error) for one in done if one.error] == [NotFound]
    assert len(told) == 4
    assert sorted(knarr.Registry(host).tags("dst/app")) == ["1.0", "1.1", "2.0"]
    again = sync(places(), read_list(str(tmp_path / "list.yaml"))[:1])
    assert all(one.copied is not None and one.copied.copied == (0, 0) for one in again)


def test_the_command(host: str, layout: str, tmp_path: Path) -> None:
    knarr.copy(layout, f"docker://{host}/cmd/app:1")
    (tmp_path / "list.yaml").write_text(f"{host}:\n  images:\n    cmd/app: []\n    cmd/gone: ['1']\n")
    command = [
        sys.executable,
        "-m",
        "knarr.cli.main",
        "image",
        "sync",
        "--to",
        f"oci:{tmp_path}/all",
        f"{tmp_path}/list.yaml",
    ]
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=False)
    assert "would copy" in dry.stdout
    assert not (tmp_path / "all").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stdout.startswith(f"docker://{host}/cmd/app:1 -> oci:{tmp_path}/all:{host}/cmd/app:1 sha256:")
    assert len(done.stderr.splitlines()) == 1
    assert "cmd/gone" in done.stderr
    index = json.loads((tmp_path / "all/index.json").read_bytes())
    assert [one["annotations"]["org.opencontainers.image.ref.name"] for one in index["manifests"]] == [
        f"{host}/cmd/app:1"
    ]
    assert sorted(os.listdir(tmp_path / "all")) == ["blobs", "index.json", "oci-layout"]
