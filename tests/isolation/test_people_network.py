"""``knarr.run(network=…)`` for guests: outbound, published, by root and by an ordinary user."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from behind import need

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import enginekit  # pyright: ignore[reportMissingImports]  # it lies in tests/engine
import networkkit  # pyright: ignore[reportMissingImports]

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    folder = enginekit.new_folder()
    try:
        yield enginekit.layout(folder / "image")
    finally:
        enginekit.remove_folder(folder)


@pytest.fixture(params=["root", "nobody"])
def person(request: pytest.FixtureRequest) -> Iterator[enginekit.Person]:
    networkkit.need("slirp4netns")
    folder = enginekit.new_folder()
    try:
        yield networkkit.on_own_machine(enginekit.Person(request.param, folder))
        assert enginekit.leftovers(folder) == []
    finally:
        enginekit.remove_folder(folder)


SLIRP = """
port, closed = serve(HOST4), serve("127.0.0.1", b"loopback")
words = ["sh", "-c", f"busybox timeout 2 busybox nc {{HOST4}} {{port}} </dev/null > /tmp/index.html; "
         f"busybox timeout 2 busybox nc 10.0.2.2 {{closed}} </dev/null >> /tmp/index.html; "
         f"exec busybox httpd -f -p 80 -h /tmp"]
with knarr.Container({image!r}, words, isolation={kind!r}, network="slirp4netns", publish=["127.0.0.1::80"]) as box:
    print(until(lambda: get(box.ports["80/tcp"][1]), 30))
"""


@pytest.mark.parametrize("kind", ["kernel", "vm"])
def test_out_and_in_by_slirp4netns(person: enginekit.Person, image: str, kind: str) -> None:
    need(kind)
    if (kind, person.kind) == ("vm", "root"):
        pytest.skip("the ordinary user's is the harder one, and each boot of it costs seconds")
    said = networkkit.does(person, SLIRP.format(image=image, kind=kind), timeout=90)
    assert said == "b'from here'\n"


PASTA = """
port, closed = serve(HOST4), serve("127.0.0.1", b"loopback")
six = serve(HOST6)
script = {caller!r} + f'''call {{HOST4}} {{port}}
call {{HOST6}} {{six}}
busybox timeout 1 busybox nc 10.77.0.254 {{closed}} </dev/null; echo'''
print(knarr.run({image!r}, ["sh", "-c", script], isolation="kernel", network="pasta").stdout.decode())
"""


def test_out_by_pasta(person: enginekit.Person, image: str) -> None:
    need("kernel")
    networkkit.need("pasta")
    said = networkkit.does(person, PASTA.format(image=image, caller=networkkit.caller("pasta")), timeout=90)
    assert said.split() == ["from", "here", "from", "here"], said
