"""Frames as a packet socket gives them, made fit for a wire: checksums completed, long ones cut (pure).

Between devices of one host the kernel leaves checksums to a card that never comes, and hands on up to 64 KiB of TCP or
UDP as one frame. struct virtio_net_hdr before each frame says so: packet(7), PACKET_VNET_HDR; include/uapi/linux/
virtio_net.h. Frames come from the container's neighbours: what does not fit together is dropped.
"""

from __future__ import annotations

from struct import Struct

from knarr.isolation.nic import MTU

HEAD = 10
"""Bytes of struct virtio_net_hdr, in the host's byte order."""
_HEAD = Struct("=BBHHHH")
_NEEDS_CHECKSUM, _TCP4, _TCP6, _UDP, _ECN = 1, 1, 4, 5, 0x80
_TCP = 6
LONGEST = 14 + MTU
"""Bytes of the longest frame the guest's devices take."""
_LEAST = 48
"""Payload of the smallest segment: TCP's least MSS of Linux (net.ipv4.tcp_min_snd_mss), so that none is cut to dust."""
_IP4, _IP6 = 0x0800, 0x86DD
_FIN_PSH, _CWR = 0x09, 0x80


def plain(packet: memoryview) -> list[bytes | bytearray | memoryview]:
    """The frames that a packet with its virtio_net_hdr stands for; none for one that cannot be."""
    flags, kind, _, size, start, offset = _HEAD.unpack_from(packet)
    frame = packet[HEAD:]
    if not kind:
        if len(frame) > LONGEST:
            return _shortened(bytes(frame))
        if not flags & _NEEDS_CHECKSUM:
            return [frame]
        if start + offset + 2 > len(frame) or start < 14:
            return []
        whole = bytearray(frame)
        _complete(whole, start, offset)
        return [whole]
    if not flags & _NEEDS_CHECKSUM or size < _LEAST or start + offset + 2 > len(frame):
        return []
    return _cut(bytes(frame), kind & ~_ECN, size, start, offset)


def _shortened(frame: bytes) -> list[bytes | bytearray | memoryview]:
    """Cut a frame of a device with a larger MTU than the guest's, if it is TCP: slirp sends longer ones than it may."""
    if frame[12:14] == b"\x08\x00" and frame[23] == _TCP and not frame[20] & 0x3F and not frame[21]:
        start, addresses, kind = 14 + (frame[14] & 15) * 4, frame[26:34], _TCP4
    elif frame[12:14] == b"\x86\xdd" and frame[20] == _TCP:
        start, addresses, kind = 54, frame[22:54], _TCP6
    else:
        return []
    pseudo = (checksum(addresses) + _TCP + len(frame) - start) % 0xFFFF
    whole = frame[: start + 16] + pseudo.to_bytes(2, "big") + frame[start + 18 :]
    return _cut(whole, kind, LONGEST - start - (frame[start + 12] >> 4) * 4, start, 16)


def _complete(frame: bytearray, start: int, offset: int) -> None:
    """Put the checksum where its field has the sum of the pseudo header (RFC 1071)."""
    at = start + offset
    # Never 0, which of UDP would say that there is none: the sum is below 0xFFFF.
    frame[at : at + 2] = (~checksum(memoryview(frame)[start:]) & 0xFFFF).to_bytes(2, "big")


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The ones' complement sum of 16-bit words: as one number, modulo 65535, since 65536 is 1 there."""
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return number % 0xFFFF


def _cut(frame: bytes, kind: int, size: int, start: int, offset: int) -> list[bytes | bytearray | memoryview]:
    """Cut a long frame as the kernel would (TCP and UDP segmentation), with the heads of each piece made right."""
    network = 14
    tcp = kind in (_TCP4, _TCP6)
    if not tcp and kind != _UDP:
        return []
    protocol = int.from_bytes(frame[12:14], "big")
    begin = start + (frame[start + 12] >> 4) * 4 if tcp and start + 12 < len(frame) else start + 8
    least = {_IP4: 20, _IP6: 40}.get(protocol)
    if least is None or start < network + least or offset != (16 if tcp else 6):
        return []
    if not start + (20 if tcp else 8) <= begin <= len(frame):
        return []
    heads, payload = frame[:begin], frame[begin:]
    # The field has the pseudo header's sum with the whole length in it.
    pseudo = int.from_bytes(frame[start + offset : start + offset + 2], "big") - (len(frame) - start)
    sequence, flags = int.from_bytes(frame[start + 4 : start + 8], "big"), frame[start + 13] if tcp else 0
    identity = int.from_bytes(frame[network + 4 : network + 6], "big")
    pieces: list[bytes | bytearray | memoryview] = []
    for number, at in enumerate(range(0, len(payload), size)):
        piece = payload[at : at + size]
        whole = bytearray(heads)
        whole += piece
        length = len(whole) - start
        if protocol == _IP4:
            whole[network + 2 : network + 4] = (len(whole) - network).to_bytes(2, "big")
            whole[network + 4 : network + 6] = (identity + number & 0xFFFF).to_bytes(2, "big")
            whole[network + 10 : network + 12] = b"\0\0"
            head = (whole[network] & 15) * 4
            total = ~checksum(memoryview(whole)[network : network + head]) & 0xFFFF
            whole[network + 10 : network + 12] = total.to_bytes(2, "big")
        else:
            whole[network + 4 : network + 6] = (len(whole) - network - 40).to_bytes(2, "big")
        if tcp:
            whole[start + 4 : start + 8] = (sequence + at & 0xFFFFFFFF).to_bytes(4, "big")
            mask = 0xFF if at + size >= len(payload) else 0xFF & ~_FIN_PSH
            whole[start + 13] = flags & mask & (0xFF if number == 0 else 0xFF & ~_CWR)
        else:
            whole[start + 4 : start + 6] = length.to_bytes(2, "big")
        whole[start + offset : start + offset + 2] = ((pseudo + length) % 0xFFFF).to_bytes(2, "big")
        _complete(whole, start, offset)
        pieces.append(whole)
    return pieces
