"""Sizes, durations, tables and progress as people read them."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.cli._text import (
    Progress,
    duration_text,
    parse_size,
    printable,
    size_text,
    table,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("300", 300), ("4K", 4096), ("4KiB", 4096), ("4 kb", 4096), ("1.5M", 1572864)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "4X", "four", "1..2M", "inf", "1e400", "nan"])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="for example"):
        parse_size(text)


@given(st.integers(0, 2**60))
def test_a_written_size_reads_back_within_its_precision(size: int) -> None:
    back = parse_size(size_text(size))
    assert abs(back - size) <= max(size * 0.06, 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photos/é 漢.jpg", "photos/é 漢.jpg"),
        ("a\x1b]0;title\x07b", r"a\x1b]0;title\x07b"),
        ("one\nLOST two\r", r"one\nLOST two\r"),
        ("csi \x9b2J, \u202e turned", r"csi \x9b2J, \u202e turned"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_take_for_a_command_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_what_is_shown_is_one_line_of_characters_to_be_seen(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


def test_durations() -> None:
    assert [duration_text(s) for s in (0.04, 59.94, 61, 3725)] == [
        "0.0s",
        "59.9s",
        "1m 1s",
        "1h 2m",
    ]


def test_table_columns_line_up() -> None:
    lines = table(["name", "n"], [["a", "1"], ["longer", "1,000"]]).splitlines()
    assert lines == ["name        n", "------  -----", "a           1", "longer  1,000"]


def test_progress_off_a_terminal_is_at_most_ten_lines_and_the_end() -> None:
    out = io.StringIO()
    progress = Progress("verify", 1000, out)
    for done in range(1001):
        progress.update(done)
    progress.done()
    assert len(out.getvalue().splitlines()) == 11
