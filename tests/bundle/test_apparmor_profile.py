"""The AppArmor profile: when it is loaded, who gets it, and that apparmor_parser takes its text.

What it forbids is seen in a kernel that has AppArmor: tests/vm/test_apparmor.py.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from knarr.bundle.apparmor_profile import NAME, Choice, choose, profile_text
from knarr.bundle.convert import to_runtime_spec
from knarr.bundle.options import Facts, RunOptions
from knarr.bundle.users import ContainerUser

OWN, LOADED = Choice(NAME), Choice(NAME, load=True)
PARSER = shutil.which("apparmor_parser", path="/usr/sbin:/sbin:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("loaded", "marker", "root", "parser", "expected"),
    [
        (False, "", True, "/p", LOADED),
        (False, "today", True, "/p", LOADED),  # somebody unloaded it
        (True, "today", True, "/p", OWN),
        (True, "", True, "/p", OWN),  # the administrator's
        (True, "older", True, "/p", LOADED),
        (True, "older", True, "", OWN),
        (True, "older", False, "/p", OWN),
        (True, "", False, "", OWN),
        (False, "", False, "/p", Choice()),
        (None, "", True, "/p", Choice()),
        (None, "today", True, "", Choice()),
    ],
)
def test_when_it_is_loaded(loaded: bool | None, marker: str, root: bool, parser: str, expected: Choice) -> None:
    assert choose(loaded=loaded, marker=marker, digest="today", root=root, parser=parser) == expected


def test_a_note_says_that_there_is_no_parser() -> None:
    found = choose(loaded=False, marker="", digest="today", root=True, parser="")
    assert (found.profile, found.load) == ("", False)
    assert "apparmor_parser" in found.note


@pytest.mark.parametrize("network", ["none", "host"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NAME),
        ({"apparmor": "mine"}, "mine"),
        ({"apparmor": "unconfined"}, None),
        ({"privileged": True}, None),
        ({"privileged": True, "apparmor": "mine"}, "mine"),
    ],
)
def test_who_gets_it(network: str, options: dict[str, object], expected: str | None) -> None:
    document = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]}}
    user = ContainerUser(0, 0, (0,), "root", "/root")
    wishes = RunOptions(network=network, **options)  # type: ignore[arg-type]  # fields of various types
    process = to_runtime_spec(document, wishes, user, Facts(apparmor=NAME)).config["process"]
    assert process.get("apparmorProfile") == expected


@pytest.mark.skipif(PARSER is None, reason="apparmor_parser is not installed (package apparmor)")
@pytest.mark.parametrize("abi", [False, True])
def test_the_parser_takes_the_text(abi: bool) -> None:
    command = [PARSER or "", "--skip-kernel-load", "--skip-cache", "--names"]
    done = subprocess.run(command, input=profile_text(abi=abi), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, [NAME]), done.stderr
