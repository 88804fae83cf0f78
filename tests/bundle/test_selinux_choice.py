"""Which SELinux labels a container gets: no kernel, no root."""

from __future__ import annotations

import pytest

from knarr.base.errors import UsageError
from knarr.bundle import selinux
from knarr.bundle.convert import to_runtime_spec
from knarr.bundle.options import Facts, RunOptions
from knarr.bundle.selinux import Labels
from knarr.bundle.users import ContainerUser

IMAGE = {"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/bin/true"]}}


@pytest.mark.parametrize(
    ("words", "process", "mount"),
    [
        ((), "system_u:system_r:container_t:s0:c3,c9", "system_u:object_r:container_file_t:s0:c3,c9"),
        (("disable",), "", "system_u:object_r:container_file_t:s0:c1022,c1023"),
        (("type:x_t", "disable"), "", "system_u:object_r:container_file_t:s0:c1022,c1023"),
        (("type:spc_t",), "system_u:system_r:spc_t:s0:c3,c9", "system_u:object_r:container_file_t:s0:c3,c9"),
        (("filetype:f_t",), "system_u:system_r:container_t:s0:c3,c9", "system_u:object_r:f_t:s0:c3,c9"),
        (("user:u_u", "role:r_r"), "u_u:r_r:container_t:s0:c3,c9", "u_u:object_r:container_file_t:s0:c3,c9"),
        (("level:s0:c5",), "system_u:system_r:container_t:s0:c5", "system_u:object_r:container_file_t:s0:c5"),
        (("level:s0:c5", "level:s0:c6"), "system_u:system_r:container_t:s0:c6", "system_u:object_r:container_file_t:s0:c6"),
        (("a:b:c_t:s0:c1,c2",), "a:b:c_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"),
    ],
)  # fmt: skip
def test_labels(words: tuple[str, ...], process: str, mount: str) -> None:
    categories = "c3,c9" if selinux.needs_categories(words) else ""
    assert selinux.labels(words, categories=categories) == Labels(process, mount)


def test_the_policys_own_contexts() -> None:
    text = '# comment\nprocess = "s_u:s_r:my_t:s0"\nfile = "s_u:o_r:my_file_t:s0"\nnonsense\ncontent = x\n'
    found = selinux.read_contexts(text)
    assert found == {"process": "s_u:s_r:my_t:s0", "file": "s_u:o_r:my_file_t:s0"}
    labels = selinux.labels((), categories="c1,c2", **found)
    assert labels == Labels("s_u:s_r:my_t:s0:c1,c2", "s_u:o_r:my_file_t:s0:c1,c2")
    assert selinux.shared(labels.mount) == "s_u:o_r:my_file_t:s0"


@pytest.mark.parametrize(
    ("text", "name"),
    [("SELINUX=enforcing\nSELINUXTYPE = targeted\n", "targeted"), ("# SELINUXTYPE=x\n", ""), ("", ""),
     ("SELINUXTYPE=../../tmp\n", ""), ("SELINUXTYPE=..\n", "")],
)  # fmt: skip
def test_the_name_of_the_policy(text: str, name: str) -> None:
    assert selinux.policy_name(text) == name


def test_no_two_numbers_give_one_pair_and_none_gives_the_unusable_one() -> None:
    count = 1024 * 1023 // 2 - 1
    pairs = {selinux.pair(number) for number in range(count)}
    assert len(pairs) == count
    assert selinux.UNUSABLE not in pairs
    assert selinux.pair(count) == selinux.pair(0) == "c0,c1"
    for low, high in (pair.split(",") for pair in pairs):
        assert 0 <= int(low[1:]) < int(high[1:]) < 1024


@pytest.mark.parametrize(
    ("words", "label"),
    [((), ""), (("disable",), ""), (("a:b:c:s0",), "a:b:c:s0"), (("a:b:c:s0", "disable"), "")],
)
def test_a_bundle_has_the_label_it_was_given(words: tuple[str, ...], label: str) -> None:
    assert selinux.label_of_bundle(words) == label


def test_a_bundle_has_no_label_to_change() -> None:
    with pytest.raises(UsageError, match="type:x"):
        selinux.label_of_bundle(("type:x",))


def test_they_are_in_config_json() -> None:
    labels = Labels("u:r:p_t:s0:c1,c2", "u:r:f_t:s0:c1,c2")
    config = to_runtime_spec(IMAGE, RunOptions(), ContainerUser(), Facts(selinux=labels)).config
    assert (config["process"]["selinuxLabel"], config["linux"]["mountLabel"]) == tuple(labels)
    config = to_runtime_spec(IMAGE, RunOptions(), ContainerUser(), Facts()).config
    assert "selinuxLabel" not in config["process"]
    assert "mountLabel" not in config["linux"]
