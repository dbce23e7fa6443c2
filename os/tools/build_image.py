"""Builds the root image: the interpreter, its libraries, byte-compiled modules and the program.

The format is described at the head of `kernel/vfs/src/image.rs`. Files lie at page boundaries and
are padded with zeros, because the kernel maps them as they lie. Modules are compiled as
`unchecked-hash`, so that neither copying nor the clock can make them stale.
"""

from __future__ import annotations

import argparse
import os
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = 4096
HEADER = struct.Struct("<8sQQQ")
ENTRY = struct.Struct("<IIIIQQQ")
MAGIC = b"O3ROOT01"
# The stated limit of the image: what the machine's 512 MB leave for the program is counted on it.
MAX_IMAGE_BYTES = 48 << 20
# A fixed time for everything the builder makes, so that one input gives one image.
BUILD_TIME_S = 1_700_000_000

PYTHON = "/usr/bin/python3.11"
STDLIB = "/usr/lib/python3.11"
# Parts of the library that a server never imports: tests, windows, installers, other builds.
LEAVE_OUT = {
    "test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "distutils", "venv",
    "config-3.11-x86_64-linux-gnu", "__pycache__", "pydoc_data", "curses", "dbm", "tests",
    "dist-packages", "site-packages", "msilib", "sqlite3", "turtle.py", "pydoc.py",
}  # fmt: skip
# Modules in C for terminals, databases and directories, which no server on this system can use;
# they alone would bring six megabytes of libraries.
LEAVE_OUT_MODULES = (
    "_dbm", "_gdbm", "_sqlite3", "nis", "readline", "_curses", "_curses_panel", "_crypt", "spwd",
    "ossaudiodev", "_test", "_xx", "xx", "_tkinter",
)  # fmt: skip
# Shared libraries that the loader is asked for by name and not by a dependency.
EXTRA_LIBRARIES = ["/lib/x86_64-linux-gnu/libnss_files.so.2", "/lib/x86_64-linux-gnu/libgcc_s.so.1"]


class Image:
    """Collects entries by absolute path and writes them sorted."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[int, bytes]] = {}

    def add_parents(self, path: str) -> None:
        parent = os.path.dirname(path)
        if parent != "/" and parent not in self.entries:
            self.add_parents(parent)
            self.entries[parent] = (stat.S_IFDIR | 0o755, b"")

    def add_file(self, path: str, data: bytes, mode: int = 0o444) -> None:
        self.add_parents(path)
        self.entries[path] = (stat.S_IFREG | mode, data)

    def add_link(self, path: str, target: str) -> None:
        self.add_parents(path)
        self.entries[path] = (stat.S_IFLNK | 0o777, target.encode())

    def add_directory(self, path: str) -> None:
        self.add_parents(path + "/x")

    def write(self, target: Path) -> int:
        names = sorted(self.entries)
        paths = "".join(names).encode()
        table_end = HEADER.size + ENTRY.size * len(names)
        offset = -(-(table_end + len(paths)) // PAGE) * PAGE
        header = HEADER.pack(MAGIC, len(names), table_end, len(paths))
        table = bytearray()
        body = bytearray()
        path_at = 0
        for name in names:
            mode, data = self.entries[name]
            length = len(name.encode())
            at = offset + len(body)
            table += ENTRY.pack(path_at, length, mode, 0, at, len(data), BUILD_TIME_S)
            path_at += length
            body += data
            body += bytes(-len(body) % PAGE)
        head = header + bytes(table) + paths
        head += bytes(offset - len(head))
        size = len(head) + len(body)
        if size > MAX_IMAGE_BYTES:
            raise SystemExit(f"the image has {size} bytes, more than the {MAX_IMAGE_BYTES} allowed")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".new")
        temporary.write_bytes(head + bytes(body))
        temporary.replace(target)
        return size


def read(source: Path) -> dict[str, tuple[int, bytes]]:
    """The entries of an image that was written: path -> (mode, bytes or the link's target)."""
    data = source.read_bytes()
    magic, count, paths_at, _ = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"{source} is not a root image")
    found = {}
    for number in range(count):
        at, length, mode, _, offset, size, _ = ENTRY.unpack_from(
            data, HEADER.size + ENTRY.size * number
        )
        name = data[paths_at + at : paths_at + at + length].decode()
        found[name] = (mode, data[offset : offset + size])
    return found


def libraries_of(binaries: list[str]) -> dict[str, str]:
    """The shared libraries that the binaries need: name as asked for -> file."""
    found: dict[str, str] = {}
    for binary in binaries:
        listing = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
        for line in listing.stdout.splitlines():
            words = line.split()
            if "=>" in words and len(words) >= 3 and words[2].startswith("/"):
                found[words[0]] = words[2]
            elif words and words[0].startswith("/"):
                found[words[0]] = words[0]
    return found


def compile_tree(source: Path, image_path: str, image: Image, work: Path) -> None:
    """Adds a tree of Python: sources as they are, and their code beside them."""
    copies: list[tuple[Path, str]] = []
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(f for f in folders if f not in LEAVE_OUT)
        for name in sorted(set(files) - LEAVE_OUT):
            path = Path(folder) / name
            inside = f"{image_path}/{path.relative_to(source)}"
            if name.endswith(".py"):
                copies.append((path, inside))
            elif not name.endswith((".pyc", ".so", ".exe")):
                image.add_file(inside, path.read_bytes())
    script = (
        "import sys, py_compile\n"
        "for line in sys.stdin:\n"
        "    source, target, shown = line.rstrip('\\n').split('\\t')\n"
        "    py_compile.compile(source, target, shown, doraise=True,\n"
        "        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)\n"
    )
    jobs = []
    targets = []
    for number, (path, inside) in enumerate(copies):
        code = work / f"{len(image.entries)}-{number}.pyc"
        jobs.append(f"{path}\t{code}\t{inside}\n")
        targets.append((path, inside, code))
    subprocess.run([PYTHON, "-c", script], input="".join(jobs), text=True, check=True)
    for path, inside, code in targets:
        # The source stays for tracebacks; the code is what is loaded.
        image.add_file(inside, path.read_bytes())
        folder, name = os.path.split(inside)
        image.add_file(f"{folder}/__pycache__/{name[:-3]}.cpython-311.pyc", code.read_bytes())


def build(target: Path, trees: list[tuple[Path, str]], programs: list[tuple[Path, str]]) -> int:
    image = Image()
    image.add_file("/usr/bin/python3.11", Path(PYTHON).read_bytes(), 0o555)
    image.add_link("/usr/bin/python3", "python3.11")
    image.add_link("/lib", "usr/lib")
    image.add_link("/lib64", "usr/lib64")
    image.add_link("/bin", "usr/bin")
    modules = sorted(Path(STDLIB, "lib-dynload").glob("*.so"))
    modules = [m for m in modules if not m.name.startswith(LEAVE_OUT_MODULES)]
    binaries = [PYTHON, *map(str, modules)]
    for module in modules:
        image.add_file(f"{STDLIB}/lib-dynload/{module.name}", module.read_bytes(), 0o555)
    wanted = libraries_of(binaries)
    wanted.update({Path(p).name: p for p in EXTRA_LIBRARIES if Path(p).exists()})
    for name, path in wanted.items():
        # ldd names the loader by its full path, everything else by the name asked for.
        place = f"/usr{name}" if name.startswith("/") else f"/usr/lib/x86_64-linux-gnu/{name}"
        image.add_file(place, Path(path).read_bytes(), 0o555)
    with tempfile.TemporaryDirectory() as folder:
        compile_tree(Path(STDLIB), STDLIB, image, Path(folder))
        for number, (source, place) in enumerate(trees):
            work = Path(folder, str(number))
            work.mkdir()
            compile_tree(source, place, image, work)
    for source, place in programs:
        image.add_file(place, source.read_bytes(), 0o555)
    image.add_file("/etc/nsswitch.conf", b"hosts: files dns\n")
    image.add_file("/etc/passwd", b"o3:x:1000:1000:O3Storage:/home:/bin/false\n")
    image.add_file("/etc/group", b"o3:x:1000:\n")
    for path in ("/tmp", "/run", "/data", "/home", "/dev", "/var"):
        image.add_directory(path)
    return image.write(target)


def pair(text: str) -> tuple[Path, str]:
    source, _, place = text.partition("=")
    if not place.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not SOURCE=/PLACE")
    return Path(source), place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--tree", type=pair, action="append", default=[], metavar="FOLDER=/PLACE")
    parser.add_argument("--file", type=pair, action="append", default=[], metavar="FILE=/PLACE")
    arguments = parser.parse_args()
    size = build(arguments.target, arguments.tree, arguments.file)
    print(f"{arguments.target}: {size / (1 << 20):.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
