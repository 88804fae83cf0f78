"""The other commands: pull, images, rmi, inspect, unpack, ps, exec, kill, rm, info, completion."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from knarr.cli import command
from knarr.cli.image import command as image_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enginekit import Person


def out(done: subprocess.CompletedProcess[bytes], code: int = 0) -> str:
    assert (done.returncode, done.stderr.decode()) == (code, "")
    return done.stdout.decode()


def sentence(done: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1, text
    for word in words:
        assert word in text, text


def test_images(person: Person, image: str) -> None:
    digest = out(person.knarr("pull", image)).strip()
    assert digest.startswith("sha256:")
    rows = json.loads(out(person.knarr("images", "--format", "json")))
    assert [(row["Repository"], row["Tag"], row["Digest"]) for row in rows] == [("localhost/image", "one", digest)]
    table = out(person.knarr("images")).splitlines()
    assert table[0].split() == ["REPOSITORY", "TAG", "ID", "PLATFORM", "CREATED", "SIZE"]
    assert len(table) == 2
    short = out(person.knarr("images", "-q")).strip()
    assert len(short) == 12
    assert out(person.knarr("images", "--format", "{{.Repository}}:{{.Tag}}")) == "localhost/image:one\n"
    found = json.loads(out(person.knarr("inspect", short)))[0]
    assert (found["Digest"], found["Os"], found["Config"]["Labels"]) == (digest, "linux", {"who": "test"})
    assert out(person.knarr("inspect", "--format", "{{.Config.StopSignal}}", "localhost/image:one")) == "SIGTERM\n"
    sentence(person.knarr("inspect", "--format", "{{.Nope}}", short), 125, "Nope", "there is .Id")
    assert out(person.knarr("run", "--rm", "localhost/image:one", "echo", "by name")) == "by name\n"
    assert out(person.knarr("run", "--rm", short, "echo", "by id")) == "by id\n"
    gone = out(person.knarr("rmi", "localhost/image:one"))
    assert "untagged: localhost/image:one" in gone
    assert json.loads(out(person.knarr("images", "--format", "json"))) == []
    assert [name for name in os.listdir(person.folder / "store/snapshots") if len(name) == 64] == []
    sentence(person.knarr("rmi", "localhost/image:one"), 125, "does not exist")
    sentence(person.knarr("inspect", "nosuch"), 125, "nosuch")


def test_an_image_in_use_stays(me: Person, image: str) -> None:
    assert out(me.knarr("run", "--name", "user", image, "true")) == ""
    sentence(me.knarr("rmi", "localhost/image:one"), 125, "in use by container user")
    assert out(me.knarr("rm", "user")) == "user\n"
    assert "untagged" in out(me.knarr("rmi", "localhost/image:one"))


def test_pull_policies(me: Person, image: str) -> None:
    sentence(me.knarr("run", "--pull", "never", "localhost/image:one"), 125, "does not exist")
    out(me.knarr("pull", image))
    assert out(me.knarr("run", "--rm", "--pull", "never", "localhost/image:one", "echo", "x")) == "x\n"
    # "newer" asks the registry, and goes on with what is here when that cannot be asked
    assert out(me.knarr("run", "--rm", "--pull", "newer", image, "echo", "y")) == "y\n"


def test_unpack(person: Person, image: str) -> None:
    target = person.folder / "tree"
    assert out(person.knarr("unpack", image, str(target))) == f"{target}\n"
    assert (target / "data/file").read_text() == "of the image\n"
    assert os.readlink(target / "bin/sh") == "busybox"
    sentence(person.knarr("unpack", image, str(target)), 125, "not empty")
    sentence(person.knarr("unpack", "oci:/nonexistent:x", str(person.folder / "no")), 125, "/nonexistent")
    assert not (person.folder / "no").exists()


@pytest.fixture
def web(person: Person, image: str) -> Iterator[Person]:
    """Somebody with a container called web."""
    run = person.start("run", "--name", "web", "-e", "A=1", image, "sleep", "1000")
    deadline = time.monotonic() + 30
    while b"web" not in person.knarr("ps", "--format", "{{.Name}}").stdout:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.05)
    try:
        yield person
    finally:
        person.knarr("rm", "-f", "web")
        run.communicate(timeout=20)


def test_ps_exec_kill_rm(web: Person) -> None:
    table = out(web.knarr("ps")).splitlines()
    assert table[0].split() == ["ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAME"]
    assert "sleep 1000" in table[1]
    assert "running for" in table[1]
    id = out(web.knarr("ps", "-q", "--no-trunc")).strip()
    assert len(id) == 64
    # by name, by id, by the start of an id
    for name in ("web", id, id[:8]):
        assert out(web.knarr("exec", name, "sh", "-c", "echo $A")) == "1\n"
    assert out(web.knarr("exec", "-e", "A=2", "-w", "/data", "web", "sh", "-c", "echo $A; pwd")) == "2\n/data\n"
    assert out(web.knarr("exec", "-i", "web", "cat", input=b"in\n")) == "in\n"
    assert out(web.knarr("exec", "web", "sh", "-c", "exit 9"), 9) == ""
    sentence(web.knarr("exec", "web", "nosuch"), 127, "nosuch")
    sentence(web.knarr("exec", "web"), 125, "needs a command")
    if web.kind in ("root", "nobody-subids"):
        text = out(web.knarr("exec", "-u", "app", "web", "id"))
        assert text == "uid=1000(app) gid=1000(app) groups=1000(app),1001(extra)\n"
    read = "while read a b; do case $a in Cap*:|NoNewPrivs:|Seccomp:) echo $a$b;; esac; done < /proc/self/status"
    own = out(web.knarr("exec", "web", "sh", "-c", read.replace("self", "1")))
    assert out(web.knarr("exec", "web", "sh", "-c", read)) == own  # an exec has what the first process has
    assert (
        web.knarr("inspect", "--format", "{{.State.Status}} {{.HostConfig.NetworkMode}}", "web").stdout
        == b"running none\n"
    )
    sentence(web.knarr("rm", "web"), 125, "in use", "--force")
    assert out(web.knarr("kill", "-s", "CONT", "web")) == "web\n"
    assert out(web.knarr("kill", "web")) == "web\n"
    deadline = time.monotonic() + 20
    while out(web.knarr("ps", "-a", "--format", "{{.State}} {{.ExitCode}}")) != "exited 137\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sentence(web.knarr("kill", "web"), 125, "exited")
    sentence(web.knarr("exec", "web", "true"), 125, "exited")
    assert out(web.knarr("rm", "web")) == "web\n"
    sentence(web.knarr("rm", "web"), 125, "does not exist")
    assert out(web.knarr("rm", "-f", "web")) == ""


def test_rm_all(me: Person, image: str) -> None:
    for _ in range(2):
        out(me.knarr("run", image, "true"))
    assert len(out(me.knarr("rm", "--all")).splitlines()) == 2
    sentence(me.knarr("rm"), 125, "--all")


def test_info_and_version(person: Person) -> None:
    facts = json.loads(out(person.knarr("info", "--format", "json")))
    assert facts["Host"]["Rootless"] is (person.kind != "root")
    assert facts["Knarr"]["Store"] == str(person.folder / "store")
    assert out(person.knarr("version")).startswith("knarr ")
    assert out(person.knarr("--version")).startswith("knarr ")
    assert "Kernel" in person.knarr("info").stdout.decode()
    assert not (person.folder / "store").exists()  # looking makes nothing


def test_overview_and_unknown_commands(me: Person) -> None:
    text = out(me.knarr("--help"))
    for name in command.COMMANDS:
        assert f"\n  {name} " in text
    assert out(me.knarr()) == text
    assert out(me.knarr("help", "ps")).startswith("usage: knarr ps")
    sentence(me.knarr("iamges"), 125, "did you mean images?")
    sentence(me.knarr("--nosuch"), 125, "--nosuch")
    sentence(me.knarr("--store"), 125, "--store")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_help_with_an_example(name: str, me: Person) -> None:
    text = out(me.knarr(name, "--help"))
    assert text.startswith(f"usage: knarr {name}")
    assert "examples:" in text
    assert f"knarr {name}" in text.partition("examples:")[2]
    sentence(me.knarr(name, "--nosuch-option"), 125, "--help")


@pytest.mark.parametrize("name", image_command.COMMANDS)
def test_every_command_below_image_has_help_with_an_example(name: str, me: Person) -> None:
    text = out(me.knarr("image", name, "--help"))
    assert text.startswith(f"usage: knarr image {name}")
    assert f"knarr image {name}" in text.partition("examples:")[2]
    assert out(me.knarr("image", "help", name)) == text
    sentence(me.knarr("image", name, "--nosuch-option"), 125, f"knarr image {name} --help")


def test_the_overview_of_image(me: Person) -> None:
    text = out(me.knarr("image", "--help"))
    for name, (_, summary) in image_command.COMMANDS.items():
        assert f"\n  {name:<14} {summary}" in text
    assert out(me.knarr("image")) == text
    sentence(me.knarr("image", "craete"), 125, "did you mean create?")


def test_store_of_somebody_else(me: Person, image: str) -> None:
    (me.folder / "store").mkdir()
    (me.folder / "store").chmod(0o777)
    sentence(me.knarr("pull", image), 125, "writable by others")


def complete(person: Person, line: str) -> list[str]:
    """What argcomplete's protocol answers for a command line."""
    file = person.folder / "answer"
    file.write_text("")
    env = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_IFS": "\n",
           "_ARGCOMPLETE_STDOUT_FILENAME": str(file), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}  # fmt: skip
    person.knarr(env=env)
    return sorted(word.strip() for word in file.read_text().replace("\013", "\n").split("\n") if word.strip())


def test_completion(me: Person, image: str) -> None:
    out(me.knarr("pull", image))
    out(me.knarr("run", "--name", "web", image, "true"))
    assert complete(me, "knarr im") == ["image", "images"]
    assert complete(me, "knarr image cre") == ["create"]
    assert complete(me, "knarr image create --from") == ["--from-host"]
    assert complete(me, "knarr run --net") == ["--network"]
    assert complete(me, "knarr run --network ") == ["host", "none", "pasta", "private", "slirp4netns"]
    assert complete(me, "knarr run local") == ["localhost/image:one"]
    assert complete(me, "knarr run ho") == ["host:"]
    assert complete(me, "knarr rm w") == ["web"]
    assert "--format" in complete(me, "knarr ps --")
    out(me.knarr("rm", "web"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_accepted(shell: str, me: Person) -> None:
    import shutil

    script = out(me.knarr("completion", shell))
    assert "knarr" in script
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([program, "-n"], input=script.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_completion_of_an_unknown_shell(me: Person) -> None:
    sentence(me.knarr("completion", "tcsh"), 125, "bash, zsh, fish")


def test_a_closed_pipe_is_no_traceback(me: Person) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *me.command("--help")], capture_output=True, env=me.environment, check=False
    )
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


def test_ctrl_c_at_any_time(me: Person, image: str) -> None:
    """SIGINT at moments all over a run: one sentence at most, and nothing is left (the fixture looks)."""
    import random
    import signal

    chance = random.Random(7)
    out(me.knarr("pull", image))
    for _ in range(12):
        run = me.start("run", "--rm", image, "sleep", "100")
        time.sleep(chance.uniform(0.0, 0.35))
        run.send_signal(signal.SIGINT)
        try:
            _, said = run.communicate(timeout=3)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGINT)
            _, said = run.communicate(timeout=20)
        if b"/knarr/" in said or b"Traceback" not in said:  # else the interpreter itself was still starting
            assert b"Traceback" not in said, said.decode()
            assert run.returncode in (130, -2), (run.returncode, said)
