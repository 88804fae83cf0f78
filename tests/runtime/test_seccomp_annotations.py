"""crun's annotations about seccomp: a filter that is compiled already, unknown names as errors. runc has neither."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blackbox import needs_busybox, needs_root

from knarr.plan.seccomp import compile_filter

if TYPE_CHECKING:
    from blackbox import Bundle, Runtime

pytestmark = [needs_busybox, needs_root]
RULE = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
SCRIPT = ("sh", "-c", "mkdir /x 2>&1; grep Seccomp_filters /proc/self/status")


def with_filter(bundle: Bundle) -> Bundle:
    program = compile_filter({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [RULE]}, os.uname().machine)
    bundle.config["annotations"] = {"run.oci.seccomp_bpf_data": base64.b64encode(program).decode()}
    return bundle


def test_a_compiled_filter_takes_the_profiles_place(runtime: Runtime, bundle: Bundle) -> None:
    if runtime.name == "runc":
        pytest.skip("runc has no such annotation")
    with_filter(bundle)
    rules = [{**RULE, "errnoRet": 5}]  # not listened to
    bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    seen = runtime.ok("run", "--bundle", bundle.write(*SCRIPT), runtime.new_id())
    assert "No space left on device" in seen
    own = Path("/proc/self/status").read_text().partition("Seccomp_filters:")[2].split()[0]
    assert int(seen.split()[-1]) == int(own) + 1


def test_exec_has_it_too(ours: Runtime, bundle: Bundle) -> None:
    id = ours.new_id()
    ours.ok("create", "--bundle", with_filter(bundle).write("sleep", "60"), id)
    ours.ok("start", id)
    assert "No space left on device" in ours.ok("exec", id, *SCRIPT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("?", "must hold 1 to 4096 instructions"),
        ("QUJD", "not 3 bytes"),
        ("QUJDR", "is not base64"),
        ("", "not 0 bytes"),
    ],
)
def test_what_is_no_filter(text: str, words: str, ours: Runtime, bundle: Bundle) -> None:
    bundle.config["annotations"] = {"run.oci.seccomp_bpf_data": text}
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert "config.json /annotations/run.oci.seccomp_bpf_data: " in done.stderr
    assert words in done.stderr


def test_unknown_calls(ours: Runtime, bundle: Bundle) -> None:
    rules = [RULE, {"names": ["read", "no_such_call"], "action": "SCMP_ACT_LOG"}]
    bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    ours.ok("run", "--bundle", bundle.write("true"), ours.new_id())
    bundle.config["annotations"] = {"run.oci.seccomp_fail_unknown_syscall": "1"}
    done = ours("run", "--bundle", bundle.write("true"), ours.new_id())
    assert done.returncode == 1
    assert "config.json /linux/seccomp/syscalls/1/names/1: no system call 'no_such_call' is known" in done.stderr
