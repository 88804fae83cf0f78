"""The Container Runtime Interface as kubelet speaks it, with nothing but curl: gRPC over a Unix socket, a message in, one out.

Requests are dictionaries of the fields' numbers in ``runtime.v1`` of k8s.io/cri-api (api.proto); a list is a repeated field.
"""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Message = dict[int, Any]


class Refused(Exception):
    """What the engine answered when it did not do it: grpc-message."""


def call(command: Sequence[str], socket: str, method: str, message: Message) -> dict[int, list[Any]]:
    """Make a call; the answer's fields, each with all its values (numbers, or bytes). Raises Refused.

    ``command``: what starts a program where the socket is.
    """
    data = encode(message)
    words = [*command, "curl", "-sS", "--http2-prior-knowledge", "--unix-socket", socket, "--data-binary", "@-"]
    words += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-D", "/dev/stderr"]
    words.append(f"http://cri/runtime.v1.RuntimeService/{method}")
    framed = b"\0" + len(data).to_bytes(4, "big") + data
    done = subprocess.run(words, input=framed, capture_output=True, check=True, timeout=120)
    heads = dict(line.split(": ", 1) for line in done.stderr.decode().splitlines() if ": " in line)
    if heads.get("grpc-status") != "0":
        raise Refused(f"{method}: {heads.get('grpc-status')}: {heads.get('grpc-message')}")
    return decode(done.stdout[5:])


def encode(message: Message) -> bytes:
    """Protocol buffers' wire form of numbers, texts and messages."""
    result = b""
    for number, value in message.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int):
                result += varint(number << 3) + varint(each & ((1 << 64) - 1))
            else:
                data = encode(each) if isinstance(each, dict) else each.encode()
                result += varint(number << 3 | 2) + varint(len(data)) + data
    return result


def varint(value: int) -> bytes:
    result = b""
    while value > 0x7F:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def decode(data: bytes) -> dict[int, list[Any]]:
    """Field number -> its values."""
    found: dict[int, list[Any]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            at += 1
            value |= (data[at - 1] & 0x7F) << shift
            shift += 7
            if not data[at - 1] & 0x80:
                return value

    while at < len(data):
        tag = number()
        kind = tag & 7
        if kind == 0:
            value: Any = number()
        elif kind == 2:
            length = number()
            value, at = data[at : at + length], at + length
        else:
            size, form = {1: (8, "<d"), 5: (4, "<f")}[kind]
            (value,) = struct.unpack_from(form, data, at)
            at += size
        found.setdefault(tag >> 3, []).append(value)
    return found


def text(answer: dict[int, list[Any]], field: int) -> str:
    """A text, empty where it was left out."""
    return b"".join(answer.get(field, [])).decode("utf-8", "replace")
