"""TensorBoard's event files, written without TensorBoard.

A file is records, each a length, its checksum, an `Event` as a protocol buffer, and its checksum (CRC-32C, rotated and
shifted). Sources: TensorFlow, `core/lib/io/record_writer.h` and `core/util/event.proto`.
"""

import struct
import time
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, lowest bit first."""


def _table() -> list[int]:
    table = []
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C of `data`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _block(field: int, data: bytes) -> bytes:
    """A field of text, bytes or a message."""
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _event(when: float, step: int, what: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", when) + b"\x10" + _varint(step) + what


class EventFile:
    """One file in a folder, which it makes; what was in a file of this name is gone."""

    def __init__(self, folder: Path, name: str = "postmill") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.0000000000.{name}").open("wb")
        self._write(_event(time.time(), 0, _block(3, b"brain.Event:2")))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One point of each curve; on the disk when this returns."""
        values = b"".join(
            _block(1, _block(1, name.encode()) + b"\x15" + struct.pack("<f", value)) for name, value in numbers.items()
        )
        self._write(_event(time.time(), step, _block(5, values)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        self._file.write(length + _checksum(length) + data + _checksum(data))
