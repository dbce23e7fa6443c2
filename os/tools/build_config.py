"""Writes a boot configuration: arguments, environment and secret files for the program.

The format is described at the head of `kernel/src/config.rs`. The file is written for its owner
alone, since values are keys and passwords.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def build(arguments: list[str], environment: list[str], files: list[tuple[str, bytes]]) -> bytes:
    """The configuration as bytes; refuses what the kernel would read differently."""
    lines = [b"O3CONFIG 1"]
    for text in (*arguments, *environment):
        if "\n" in text or "\0" in text:
            raise ValueError("arguments and variables hold no line ends and no zero bytes")
    lines += [f"ARG={text}".encode() for text in arguments]
    for text in environment:
        key, mark, _ = text.partition("=")
        if not mark or not key or key in {"ARG", "FILE"}:
            raise ValueError(f"{key!r} is not KEY=value with a key of its own")
        lines.append(text.encode())
    for path, data in files:
        if not path.startswith("/") or "\n" in path:
            raise ValueError(f"{path!r} is not an absolute path")
        lines.append(f"FILE={path} {len(data)}".encode() + b"\n" + data)
    return b"\n".join(lines) + b"\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--arg", action="append", default=[], help="an argument; the program first")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=value")
    parser.add_argument("--file", action="append", default=[], metavar="/PLACE=FILE")
    parsed = parser.parse_args()
    files = []
    for text in parsed.file:
        place, _, source = text.partition("=")
        files.append((place, Path(source).read_bytes()))
    try:
        data = build(parsed.arg, parsed.env, files)
    except ValueError as error:
        parser.error(str(error))
    parsed.target.parent.mkdir(parents=True, exist_ok=True)
    parsed.target.unlink(missing_ok=True)
    fd = os.open(parsed.target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    print(f"{parsed.target}: {len(data)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
