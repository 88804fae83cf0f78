"""Every piece of Python in README and docs is run as it stands there."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dockerregistry import docker_registry, need_docker_registry

from knarr import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enginekit import Person

ROOT = Path(__file__).parents[2]
BEGINS = re.compile(r"(import|from|async with) \w|\w+ = (await )?(knarr\.|open_image\()")


def snippets() -> Iterator[tuple[str, str]]:
    """Page and text of each block, fenced or indented, that is Python."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield page.name, block
        for block in re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", text, re.MULTILINE):
            plain = textwrap.dedent(block)
            if BEGINS.match(plain):
                yield page.name, plain


SNIPPETS = list(snippets())

# How each begins, by page.
KNOWN = {
    ("README.md", "import knarr"),
    ("library.md", "import knarr"),
    ("library.md", "async with await knarr.aio.Image.open("),
    ("imaging.md", "from knarr import Image"),
    ("registry.md", "source = open_image("),
    ("runtime.md", "from knarr.runtime.create import"),
}


def snippet(page: str, begin: str) -> str:
    (found,) = [text for name, text in SNIPPETS if name == page and text.startswith(begin)]
    return found


def app() -> Image:
    """What the snippets call app:1."""
    return Image.empty().with_config(cmd=["/bin/app"], env={"DEBUG": "1"})


def run(person: Person, *parts: str) -> str:
    script = person.folder / "snippet.py"
    script.write_text("\n".join(parts))
    done = person.run([person.python, str(script)])
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_no_snippet_is_left_out() -> None:
    assert len(SNIPPETS) == len(KNOWN)
    for page, begin in KNOWN:
        assert snippet(page, begin)


def test_readme(person: Person) -> None:
    assert run(person, snippet("README.md", "import knarr")) == "0 b'hello\\n'\n"


def test_library(person: Person) -> None:
    said = run(person, snippet("library.md", "import knarr"), "print(result.exit_code, result.stderr)")
    assert said == "0 b''\n"


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KNARR_STORE", str(tmp_path / "store"))


def with_files(folder: Path) -> Image:
    """App:1 with the directory that the snippets remove."""
    (folder / "doc").mkdir()
    (folder / "doc/README").write_text("read me\n")
    (folder / "app").write_text("#!/bin/sh\n")
    return app().add(str(folder / "doc"), "/usr/share/doc").add(str(folder / "app"), "/bin/app")


def test_imaging(person: Person, tmp_path: Path, own_store: None) -> None:
    made = with_files(tmp_path)
    made.save(f"oci:{person.folder}/layout:1")
    said = run(
        person,
        "import knarr",
        f"knarr.copy('oci:{person.folder}/layout:1', 'store:app:1')",
        snippet("imaging.md", "from knarr import Image"),
        "print(len(slim.layers), slim.config['config'])",
        "print(Image.open('app:slim') == slim, [e.name for e in slim.layers[0].entries()])",
    )
    assert "1 {'Cmd': ['/bin/app'], 'Env': ['MODE=prod']}" in said
    assert "True" in said
    assert "b'bin/app'" in said
    assert "doc" not in said


def test_imaging_from_asyncio(tmp_path: Path, person: Person, own_store: None) -> None:
    need_docker_registry()
    text = snippet("library.md", "async with await knarr.aio.Image.open(")
    assert "docker://ghcr.io/me/" in text
    with docker_registry(tmp_path / "registry") as host:
        with_files(tmp_path).save(f"docker://{host}/me/app:1")
        inside = textwrap.indent(text.replace("docker://ghcr.io/", f"docker://{host}/"), "    ")
        said = run(person, "import asyncio, knarr", "async def main():", inside, "asyncio.run(main())")
        assert sorted(said.splitlines()) == ["b'bin/'", "b'bin/app'", "b'usr/'", "b'usr/share/'"]
        with Image.open(f"docker://{host}/me/app:slim") as slim:
            assert slim.image_config()["config"]["Env"] == ["DEBUG=1", "MODE=prod"]


def test_registry(tmp_path: Path, person: Person, own_store: None) -> None:
    need_docker_registry()
    with docker_registry(tmp_path / "registry") as host:
        app().save(f"docker://{host}/lib/app:v1")
        text = snippet("registry.md", "source = open_image(").replace("127.0.0.1:5000", host)
        said = run(
            person,
            "from knarr.registry.source import open_image",
            text,
            "print(source.roots()[0]['digest'])",
            "source.close()",
        )
        assert said.strip() == app().digest


def test_runtime(person: Person, image: str) -> None:
    if person.rootless:
        pytest.skip("knarr-runtime's create is run by root here")
    said = run(
        person,
        "import json, secrets",
        "from knarr.cli.command import run_command",
        f"assert run_command(['bundle', {image!r}, {str(person.folder)!r} + '/bundle']) == 0",
        f"bundle, state_root = {str(person.folder)!r} + '/bundle', {str(person.folder)!r} + '/run'",
        "config, id = json.load(open(bundle + '/config.json')), secrets.token_hex(8)",
        "config['process'].update(args=['sh', '-c', 'echo ran; exit 6'], terminal=False)",
        snippet("runtime.md", "from knarr.runtime.create import"),
        "print(code)",
    )
    assert said.splitlines()[-2:] == ["ran", "6"]
