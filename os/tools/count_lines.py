"""Counts the kernel's lines: non-blank, not comments, per part; and those in `unsafe`.

Exits 1 where a rule is broken: too many lines, the share of unsafe lines, unsafe outside its parts,
an unsafe block without its reason, or a way around the count.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

KERNEL = Path(__file__).resolve().parent.parent / "kernel"
# What was reached, below the 10,000 of the whole. It is only ever lowered; the aim is 7,500.
MAX_LINES = 9349
AIM_LINES = 7500
MAX_UNSAFE_PERCENT = 5
UNSAFE_PARTS = {"arch", "mm", "drivers", "usercopy"}
# What would hide code from the count.
HIDDEN = re.compile(r"rustfmt::skip|\binclude!|include_bytes!|build\s*=\s*\"")
# Lines of comment and attributes that may stand between a reason and its block.
REASON = re.compile(r"SAFETY|unsafe_code\)\] //|// The name is what")


def sources() -> list[Path]:
    found = [p for suffix in ("rs", "s", "ld") for p in KERNEL.rglob(f"*.{suffix}")]
    return sorted(p for p in found if "target" not in p.parts)


def part_of(path: Path) -> str:
    inside = path.relative_to(KERNEL)
    if inside.parts[0] != "src":
        return inside.parts[0]
    if len(inside.parts) > 2:
        return inside.parts[1]
    return "usercopy" if inside.stem == "usercopy" else "core"


def code_lines(text: str, assembly: bool) -> list[tuple[int, str]]:
    """Number and text of the lines that are neither blank nor comment."""
    if assembly:
        text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    return [(n, line) for n, line in lines if line and (assembly or not line.startswith("//"))]


def unsafe_lines(lines: list[tuple[int, str]]) -> list[int]:
    """The lines inside unsafe blocks, functions and implementations, by matching braces."""
    found = []
    depth = 0
    for number, line in lines:
        code = re.sub(r"\"(?:\\.|[^\"\\])*\"|//.*", "", line)
        if depth == 0 and (match := re.search(r"\bunsafe\b(?!_)", code)):
            found.append(number)
            rest = code[match.start() :]
            depth = max(0, rest.count("{") - rest.count("}"))
        elif depth:
            found.append(number)
            depth = max(0, depth + code.count("{") - code.count("}"))
    return found


def main() -> int:
    counts: Counter[str] = Counter()
    unsafe: Counter[str] = Counter()
    problems = []
    for path in sources():
        text = path.read_text()
        assembly = path.suffix != ".rs"
        lines = code_lines(text, assembly)
        part = part_of(path)
        counts[part] += len(lines)
        place = path.relative_to(KERNEL)
        if HIDDEN.search(text):
            problems.append(f"{place} hides code from the count")
        if assembly:
            continue
        inside = unsafe_lines(lines)
        unsafe[part] += len(inside)
        if inside and part not in UNSAFE_PARTS:
            problems.append(f"{place} has unsafe code in line {inside[0]}")
        raw = text.splitlines()
        for number in inside:
            starts = re.search(r"\bunsafe (\{|impl)", raw[number - 1])
            above = "\n".join(raw[max(0, number - 8) : number])
            if starts and not REASON.search(above):
                problems.append(f"{place}:{number} has no reason for its unsafe")
    total, total_unsafe = sum(counts.values()), sum(unsafe.values())
    for part, count in sorted(counts.items()):
        print(f"{part:10} {count:6} lines, {unsafe[part]:4} unsafe")
    percent = 100 * total_unsafe / total
    print(f"{'all':10} {total:6} lines, {total_unsafe:4} unsafe ({percent:.1f} %)")
    print(f"limit {MAX_LINES}, aim {AIM_LINES}")
    if percent > MAX_UNSAFE_PERCENT:
        problems.append(f"{percent:.1f} % unsafe lines are more than {MAX_UNSAFE_PERCENT} %")
    if total > MAX_LINES:
        problems.append(f"{total} lines are {total - MAX_LINES} more than {MAX_LINES}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
