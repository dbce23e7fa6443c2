"""Writes SYSCALLS.md from the kernel's source: the calls offered, and what each does not offer."""

from __future__ import annotations

import re
import sys
from pathlib import Path

OS = Path(__file__).resolve().parent.parent
MODULES = OS / "kernel/src/syscall"
NUMBERS = OS / "kernel/src/arch/x86_64/abi.rs"

HEAD = """# System calls

Made by `make os-docs` from `kernel/src/syscall/` and `kernel/src/arch/x86_64/abi.rs`; a test fails
where it is out of date. An empty last column means that everything which the call's manual page
describes, and which one process with threads can see, is there.

"""


def limits() -> dict[str, tuple[str, str]]:
    """Name -> module, and what stands after "Limits:" at the head of the function."""
    found = {}
    pattern = re.compile(r"((?:^///.*\n)*)^pub fn (\w+)\(", re.M)
    for path in MODULES.glob("*.rs"):
        for comment, name in pattern.findall(path.read_text()):
            text = " ".join(line[3:].strip() for line in comment.splitlines())
            _, _, note = text.partition("Limits: ")
            found[name] = (path.stem, note.rstrip("."))
    return found


def document() -> str:
    text = NUMBERS.read_text()
    served = limits()
    body = text[text.index("\nnumbers! {") :]
    body = body[: body.index("\n}")]
    rows = []
    for first, names in re.findall(r"(\d+): ([\w ]+);", body):
        for number, name in enumerate(names.split(), int(first)):
            rows.append((number, name, name))
    older = re.findall(r"\((\d+), \"(\w+)\", Call::(\w+), \"\w*\"\)", text)
    rows += [(int(number), name, call) for number, name, call in older]
    refused = re.findall(r"\((\d+), \"(\w+)\"\)", text)
    lines = [HEAD + f"{len(rows)} calls are offered on x86_64.\n\n"]
    lines.append("| number | call | served by | limits |\n|---|---|---|---|\n")
    for number, name, call in sorted(rows):
        module, note = served[call]
        note = note if name == call else f"as {call}"
        lines.append(f"| {number} | {name} | `{module}::{call}` | {note} |\n")
    lines.append("\nThese answer ENOSYS for good, without a line on the console: ")
    ordered = sorted((int(number), name) for number, name in refused)
    lines.append(", ".join(f"{name} ({number})" for number, name in ordered))
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
