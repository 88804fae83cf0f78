"""base.log: the lines that container managers read."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest

from knarr.base.clock import parse_rfc3339
from knarr.base.errors import FileError, UsageError
from knarr.base.log import LEVELS, Log, open_log

if TYPE_CHECKING:
    from pathlib import Path


def test_json_lines_as_containerd_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    for message in ("first", 'a "quoted" line\nand another\x00\x7f', "ä😀", "bytes \udcff\udcfe"):
        log = open_log(str(path), format="json")
        log.error(message)
        log.close()
    lines = path.read_bytes().decode().splitlines()
    assert len(lines) == 4
    read = [json.loads(line) for line in lines]
    assert [list(each) for each in read] == [["level", "msg", "time"]] * 4
    assert read[1]["msg"] == 'a "quoted" line\nand another\x00\x7f'
    assert read[3]["msg"] == "bytes \ufffd\ufffd"
    assert all(parse_rfc3339(each["time"]) > 0 for each in read)
    assert all(each["level"] == "error" for each in read)


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("plain-word/1.2_3@x^+", "plain-word/1.2_3@x^+"),
        ("two words", '"two words"'),
        ("", '""'),
        ('q"b\\n\n\r\t\x07\x1b', r'"q\"b\\n\n\r\t\a\x1b"'),
        ("ä\u2028\u202e\U000e0001", '"ä\\u2028\\u202e\\U000e0001"'),
        ("x\udcff", r'"x\xff"'),
    ],
)
def test_text_lines_as_logrus_writes_them(tmp_path: Path, message: str, written: str) -> None:
    path = tmp_path / "log"
    log = open_log(str(path))
    log.warning(message)
    log.close()
    line = path.read_bytes().decode()
    found = re.fullmatch(r'time="([^"]+)" level=warning msg=(.*)\n', line)
    assert found is not None
    assert parse_rfc3339(found[1]) > 0
    assert found[2] == written


@pytest.mark.parametrize("level", LEVELS)
def test_levels(tmp_path: Path, level: str) -> None:
    path = tmp_path / "log"
    log = open_log(str(path), level=level)
    log.error("e")
    log.warning("w")
    log.info("i")
    log.debug("d")
    log.close()
    written = [line.rpartition("msg=")[2] for line in path.read_text().splitlines()]
    assert written == ["e", "w", "i", "d"][: LEVELS.index(level) + 1]


def test_the_file_is_appended_to_and_closed_on_exec(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    log = open_log(str(path))
    assert not os.get_inheritable(log.fd)
    assert os.get_blocking(log.fd)
    log.error("after")
    log.close()
    log.close()
    assert path.read_text().startswith("before\ntime=")


def test_standard_error_stays_open() -> None:
    log = open_log(None)
    assert log.fd == 2
    log.close()
    os.fstat(2)


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    log = Log(write, owned=True)
    log.error("nobody hears this")
    log.close()


def test_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("no/log", "fifo", "."):
        with pytest.raises(FileError, match="cannot open log"):
            open_log(f"{tmp_path}/{path}")
    with pytest.raises(FileError, match="holds a NUL"):
        open_log("a\0b")
    with pytest.raises(UsageError, match="unknown log format 'xml': choose text or json"):
        open_log(None, format="xml")
    with pytest.raises(UsageError, match="unknown log level 'loud': choose one of error, warning, info, debug"):
        open_log(None, level="loud")
