"""A bind that is shared with the host goes away without taking the host's mounts along."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from blackbox import Bundle, Runtime, needs_busybox, needs_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_root, needs_busybox]


@pytest.mark.parametrize("namespace", ["own", "none"])
@pytest.mark.parametrize("propagation", ["rshared", "rslave", "rprivate"])
def test_what_is_mounted_below_stays(
    ours: Runtime, bundle: Bundle, tmp_path: Path, propagation: str, namespace: str
) -> None:
    """In a mount namespace of the test's own, whose mounts are shared as those of a host are."""
    source = tmp_path / "source"
    source.mkdir()
    options = ["rbind", propagation]
    bundle.config["mounts"].append({"destination": "/m", "type": "bind", "source": str(source), "options": options})
    if namespace == "none":
        linux = bundle.config["linux"]
        linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "mount"]
        del linux["maskedPaths"], linux["readonlyPaths"]
        bundle.config["root"]["readonly"] = False
    id = ours.new_id()
    path = bundle.write("sh", "-c", "cat /m/sub/file; echo end")
    call = " ".join(ours.command)
    script = f"""
set -e
mount -t tmpfs outer {source}
mount --make-shared {source}
mkdir {source}/sub
mount -t tmpfs inner {source}/sub
echo below > {source}/sub/file
{call} run --bundle {path} {id} </dev/null
cat {source}/sub/file
grep -c {source}/sub /proc/self/mountinfo
"""
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "shared", "sh", "-c", f"mount --make-rslave / && {script}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["below", "end", "below", "1"], (json.dumps(options), done.stdout, done.stderr)
