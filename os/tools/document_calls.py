"""Writes SYSCALLS.md from the kernel's tables: the calls offered, and what each does not offer."""

from __future__ import annotations

import re
import sys
from pathlib import Path

OS = Path(__file__).resolve().parent.parent
TABLE = OS / "kernel/src/syscall/mod.rs"
NUMBERS = OS / "kernel/src/arch/x86_64/abi.rs"

HEAD = """# System calls

Made by `make os-docs` from `kernel/src/syscall/mod.rs` and `kernel/src/arch/x86_64/abi.rs`; a test
fails where it is out of date. An empty last column means that everything which the call's manual
page describes, and which one process with threads can see, is there.

"""


Numbered = list[tuple[int, str]]


def read_tables() -> tuple[dict[str, tuple[str, str]], Numbered, Numbered]:
    """Name -> (function, note); number and name of the offered; number and name of the refused."""
    text = TABLE.read_text()
    body = text[text.index("\ncalls! {") :]
    entries = re.findall(r"^\s+(\w+)\s*=>\s*([\w:]+),\s*\"([^\"]*)\";", body, re.M)
    numbers = NUMBERS.read_text()
    offered = re.findall(r"\((\d+), Call::(\w+)\)", numbers)
    refused = re.findall(r"\((\d+), \"(\w+)\"\)", numbers)
    return (
        {name: (function, note) for name, function, note in entries},
        [(int(n), name) for n, name in offered],
        [(int(n), name) for n, name in refused],
    )


def document() -> str:
    calls, offered, refused = read_tables()
    missing = set(calls) ^ {name for _, name in offered}
    if missing:
        raise SystemExit(f"in one table only: {sorted(missing)}")
    lines = [HEAD + f"{len(offered)} calls are offered on x86_64.\n\n"]
    lines.append("| number | call | served by | limits |\n|---|---|---|---|\n")
    for number, name in sorted(offered):
        function, note = calls[name]
        lines.append(f"| {number} | {name} | `syscall::{function}` | {note} |\n")
    lines.append("\nThese answer ENOSYS for good, without a line on the console: ")
    lines.append(", ".join(f"{name} ({number})" for number, name in sorted(refused)))
    lines.append(".\nAny other number answers ENOSYS and is told of once, with its arguments.\n")
    return "".join(lines)


def main() -> int:
    text = document()
    target = OS / sys.argv[1]
    if "--check" in sys.argv:
        return 0 if target.read_text() == text else 1
    target.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
