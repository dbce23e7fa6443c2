"""How sizes, times and progress are written for people, and read from them."""

from __future__ import annotations

import sys
from typing import TextIO

from o3storage.server import size_text

__all__ = ["Progress", "duration_text", "parse_size", "printable", "size_text", "table"]

_FACTORS = {
    "": 1,
    "B": 1,
    "K": 1024,
    "M": 1024**2,
    "G": 1024**3,
    "T": 1024**4,
    "P": 1024**5,
}


def parse_size(text: str) -> int:
    """`4K`, `4KiB`, `4 KB`, `1.5M`, `300` -> bytes (all units are powers of 1024).

    Raises ValueError with what is accepted.
    """
    cleaned = text.strip().upper().replace(" ", "")
    number = cleaned.rstrip("BIKMGTP")
    unit = cleaned[len(number) :].removesuffix("IB").removesuffix("B")
    try:
        return int(float(number) * _FACTORS[unit])
    except (ValueError, KeyError, OverflowError):
        raise ValueError(
            f"{text!r} is not a size; write for example 4K, 64KiB, 1.5M or 2G"
        ) from None


def printable(text: str) -> str:
    """`text` with all that is not to be seen as an escape: a key, or what another node said, may
    hold what a terminal takes for a command, or the end of a line."""
    if text.isprintable():
        return text
    return "".join(
        [c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text]
    )


def duration_text(seconds: float) -> str:
    """`3725` -> `1h 2m`; sub-minute with one decimal."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest}s"
    return f"{minutes // 60}h {minutes % 60}m"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell; the first is left-aligned, the rest right-aligned."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    lines = []
    for row in [headings, ["-" * width for width in widths], *rows]:
        cells = [
            row[i].ljust(widths[i]) if i == 0 else row[i].rjust(widths[i]) for i in range(len(row))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class Progress:
    """One line that is rewritten in place on a terminal, and at most ten lines elsewhere."""

    def __init__(self, label: str, total: float, stream: TextIO | None = None) -> None:
        self.label = label
        self.total = max(total, 1)
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._last = -1

    def update(self, done: float, note: str = "") -> None:
        percent = min(100, int(100 * done / self.total))
        step = percent if self._terminal else percent // 10
        if step == self._last and not (self._terminal and note):
            return
        self._last = step
        if self._terminal:
            filled = percent * 30 // 100
            bar = "#" * filled + "." * (30 - filled)
            self._stream.write(f"\r{self.label} [{bar}] {percent:3d}% {note}\x1b[K")
        else:
            self._stream.write(f"{self.label} {percent}% {note}".rstrip() + "\n")
        self._stream.flush()

    def done(self) -> None:
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()
