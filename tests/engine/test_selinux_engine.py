"""What the engine makes of a policy: a made-up one here, a real one in tests/vm."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from knarr.base.errors import Unsupported
from knarr.bundle.options import RunOptions
from knarr.bundle.selinux import Labels
from knarr.engine import host, selinux
from knarr.engine.paths import Places

if TYPE_CHECKING:
    from pathlib import Path

CONTAINER = re.compile(r"system_u:system_r:container_t:s0:(c\d+,c\d+)")


class Policy:
    """One that knows some types, and lets a domain enter some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.types = {"container_t", "container_file_t", "spc_t"}
        self.denied: set[tuple[str, str]] = set()
        self.permissive = 0
        self.folder = folder
        for kind, number, names in (("process", 2, ("fork", "transition")), ("process2", 97, ("nnp_transition",))):
            (folder / "class" / kind / "perms").mkdir(parents=True)
            (folder / "class" / kind / "index").write_text(f"{number}")
            for bit, name in enumerate(names, 1):
                (folder / "class" / kind / "perms" / name).write_text(f"{bit}")
        self.enforce(on=True)
        monkeypatch.setattr(selinux, "SELINUXFS", str(folder))
        monkeypatch.setattr(selinux, "_ETC", str(folder))
        monkeypatch.setattr(selinux, "_ask", self.ask)
        here = host.host().replace(selinux=True)
        monkeypatch.setattr(host, "host", lambda: here)

    def enforce(self, *, on: bool) -> None:
        (self.folder / "enforce").write_text(f"{on:d}")

    def ask(self, file: str, question: str) -> str | None:
        if file == "context":
            return question if question.split(":")[2] in self.types else None
        target, number = question.split()[-2:]  # before them: this process, which may have no label here
        allowed = 0b10 if ("transition", target.split(":")[2]) not in self.denied else 0
        if number == "97":
            allowed = 0b1 if ("nnp_transition", target.split(":")[2]) not in self.denied else 0
        return f"{allowed:x} ffffffff 0 ffffffff 1 {self.permissive:x}"


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Policy:
    return Policy(monkeypatch, tmp_path)


@pytest.mark.usefixtures("policy")
def test_categories_are_in_both_labels() -> None:
    choice = selinux.choose(RunOptions())
    found = CONTAINER.fullmatch(choice.labels.process)
    assert found
    assert choice == selinux.Choice(Labels(found[0], f"system_u:object_r:container_file_t:s0:{found[1]}"), found[1])
    assert selinux.choose(RunOptions(), "c1,c2").labels.process.endswith(":s0:c1,c2")
    assert selinux.summary() == "system_u:system_r:container_t:s0 with two categories of its own"


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize(
    ("options", "process"),
    [
        ({"privileged": True}, ""),
        ({"selinux": ("disable",)}, ""),
        ({"selinux": ("level:s0:c5",)}, "system_u:system_r:container_t:s0:c5"),
        ({"selinux": ("level:s0:c5",), "privileged": True}, "system_u:system_r:container_t:s0:c5"),
    ],
)
def test_without_categories_of_its_own_none_are_taken(options: dict[str, Any], process: str) -> None:
    choice = selinux.choose(RunOptions(**options))
    assert (choice.labels.process, choice.categories, choice.note) == (process, "", "")


def test_a_policy_without_the_type_is_noted_and_what_was_named_is_an_error(policy: Policy) -> None:
    policy.types = {"spc_t"}
    choice = selinux.choose(RunOptions())
    assert choice.labels == Labels()
    assert choice.note.startswith("no SELinux label guards this container: the policy has no system_u:system_r:conta")
    assert choice.categories == ""
    assert selinux.choose(RunOptions(privileged=True)) == selinux.Choice()
    with pytest.raises(Unsupported, match=r"label=level:s0:c1.*the policy has no"):
        selinux.choose(RunOptions(selinux=("level:s0:c1",)))


@pytest.mark.parametrize("permission", ["transition", "nnp_transition"])
def test_what_the_caller_may_not_enter(policy: Policy, permission: str) -> None:
    policy.denied = {(permission, "container_t")}
    assert f"the permission {permission} to system_u:system_r:container_t" in selinux.choose(RunOptions()).note
    assert selinux.choose(RunOptions(selinux=("type:spc_t",))).labels.process
    with pytest.raises(Unsupported, match=permission):
        selinux.choose(RunOptions(selinux=("level:s0",)))
    if permission == "nnp_transition":
        assert selinux.choose(RunOptions(allow_new_privs=True)).labels.process
    policy.permissive = 1
    assert selinux.choose(RunOptions()).labels.process
    policy.permissive = 0
    policy.enforce(on=False)
    assert selinux.choose(RunOptions()).labels.process


def test_the_policys_own_types(policy: Policy) -> None:
    (policy.folder / "config").write_text("SELINUX=enforcing\nSELINUXTYPE=mine\n")
    (policy.folder / "mine/contexts").mkdir(parents=True)
    (policy.folder / "mine/contexts/lxc_contexts").write_text('process = "a_u:b_r:spc_t:s0"\n')
    labels = selinux.choose(RunOptions(), "c1,c2").labels
    assert labels == Labels("a_u:b_r:spc_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2")


def test_without_selinux_only_what_is_nothing_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    here = host.host().replace(selinux=False)
    monkeypatch.setattr(host, "host", lambda: here)
    assert selinux.choose(RunOptions()) == selinux.choose(RunOptions(selinux=("disable",))) == selinux.Choice()
    assert selinux.summary() == "none"
    with pytest.raises(Unsupported, match="SELinux is not enabled"):
        selinux.choose(RunOptions(selinux=("type:x",)))


def test_a_pair_that_somebody_has_is_not_given_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selinux, "_REGISTRIES", (str(tmp_path / "categories"),))
    where = Places(str(tmp_path), str(tmp_path / "run"))
    registry = selinux.registries(where)[0]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert selinux.take(where, "c1,c2", str(tmp_path / "one")) == "c1,c2"
    other = selinux.take(where, "c1,c2", str(tmp_path / "two"))
    assert other != "c1,c2"
    assert {name for name in os.listdir(registry) if not name.startswith(".")} >= {"c1,c2", other}
    selinux.release(where, "c1,c2", str(tmp_path / "two"))
    assert os.readlink(f"{registry}/c1,c2") == str(tmp_path / "one"), "only its own"
    selinux.release(where, "c1,c2", str(tmp_path / "one"))
    assert selinux.take(where, "c1,c2", str(tmp_path / "two")) == "c1,c2"
    (tmp_path / "two").rmdir()
    assert selinux.take(where, "c1,c2", str(tmp_path / "one")) == "c1,c2", "what is gone has nothing"
