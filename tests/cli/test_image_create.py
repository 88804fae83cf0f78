"""``knarr image create --from-host``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from enginekit import Person


def test_an_image_of_programs(person: Person) -> None:
    done = person.knarr("image", "create", "tools:1", "--from-host", "/bin/sh,cat", "--from-host", "id", "-e", "A=1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"sha256:")
    ran = person.knarr("run", "--rm", "tools:1", "sh", "-c", "echo $A; id -u; cat /etc/passwd")
    assert ran.stdout == b"1\n0\nroot:x:0:0:root:/root:/bin/sh\n", ran.stderr.decode()
    default = person.knarr("run", "--rm", "-i", "tools:1", input=b"echo from the shell\n")
    assert default.stdout == b"from the shell\n"


def test_it_is_reproducible(me: Person) -> None:
    made = [me.knarr("image", "create", name, "--from-host", "/bin/sh").stdout for name in ("a:1", "b:1")]
    assert made[0] == made[1]
    assert made[0].startswith(b"sha256:")
    dated = me.knarr("image", "create", "c:1", "--from-host", "/bin/sh", env={"SOURCE_DATE_EPOCH": "0"})
    assert dated.stdout != made[0]
    assert json.loads(me.knarr("inspect", "c:1").stdout)[0]["Created"] == "1970-01-01T00:00:00Z"


def test_another_tool_reads_it(me: Person) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed")
    assert (
        me.knarr(
            "image", "create", "localhost/tools:1", "--from-host", "/bin/sh", "--", "/bin/sh", "-c", "echo x"
        ).returncode
        == 0
    )
    store = me.folder / "store"
    done = subprocess.run(
        [skopeo, "inspect", "--config", f"oci:{store}:localhost/tools:1"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["config"]["Cmd"] == ["/bin/sh", "-c", "echo x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "x:1"], "--from-host"),
        (["create", "x:1", "--from-host", "nosuchprogram"], "nosuchprogram"),
        (["create", "x:1", "--from-host", "/etc"], "/etc"),
        (["create", "UPPER", "--from-host", "sh"], "UPPER"),
        (["create", "oci:x:1", "--from-host", "sh"], "name of a new image"),
        (["create", "host:", "--from-host", "sh"], "name of a new image"),
        (["destroy", "x:1"], "knarr image --help"),
        (["create"], "NAME"),
    ],
)
def test_mistakes(words: list[str], said: str, me: Person) -> None:
    done = me.knarr("image", *words)
    text = done.stderr.decode()
    assert done.returncode == 125
    assert len(text.splitlines()) == 1
    assert said in text
    blobs = me.folder / "store/blobs/sha256"
    assert not blobs.exists() or os.listdir(blobs) == []
