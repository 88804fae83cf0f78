# What knarr uses of jeepney 0.9, which carries no types.

from enum import Enum
from typing import Any

class Endianness(Enum):
    little = 1
    big = 2

class MessageType(Enum):
    method_call = 1
    method_return = 2
    error = 3
    signal = 4

class HeaderFields(Enum):
    path = 1
    interface = 2
    member = 3
    error_name = 4
    reply_serial = 5
    destination = 6
    sender = 7
    signature = 8
    unix_fds = 9

class Header:
    message_type: MessageType
    fields: dict[HeaderFields, Any]
    def __init__(
        self,
        endianness: Endianness,
        message_type: MessageType,
        flags: int,
        protocol_version: int,
        body_length: int,
        serial: int,
        fields: dict[HeaderFields, Any],
    ) -> None: ...

class Message:
    header: Header
    body: tuple[Any, ...]
    def __init__(self, header: Header, body: tuple[Any, ...]) -> None: ...
    def serialise(self, serial: int | None = None) -> bytes: ...

class Parser:
    def add_data(self, data: bytes) -> None: ...
    def get_next_message(self) -> Message | None: ...
