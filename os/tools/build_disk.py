"""Builds one hybrid disk image that boots by BIOS and by UEFI, with GRUB and Multiboot2."""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MENU = """set timeout=0
set default=0
serial --unit=0 --speed=115200
terminal_output serial
insmod gzio
menuentry o3storageos {{
    multiboot2 /boot/o3os {command_line}
    module2 /boot/root.img
{modules}}}
"""


def build(target: Path, kernel: Path, root: Path, config: Path | None, command_line: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        boot = Path(folder, "boot")
        (boot / "grub").mkdir(parents=True)
        # Without what only a debugger reads, the loader has a tenth to fetch.
        subprocess.run(["strip", "-g", "-o", boot / "o3os", kernel], check=True)
        # The loader reads slowly and unpacks fast: packed, the image is a third.
        with gzip.GzipFile(boot / "root.img", "wb", compresslevel=6, mtime=0) as packed:
            packed.write(root.read_bytes())
        modules = ""
        if config is not None:
            shutil.copyfile(config, boot / "config")
            modules = "    module2 /boot/config\n"
        menu = MENU.format(command_line=command_line, modules=modules)
        (boot / "grub/grub.cfg").write_text(menu)
        target.parent.mkdir(parents=True, exist_ok=True)
        made = subprocess.run(
            ["grub-mkrescue", "-o", target, folder], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            raise SystemExit(f"grub-mkrescue failed:\n{made.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--kernel", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--command-line", default="")
    parsed = parser.parse_args()
    build(parsed.target, parsed.kernel, parsed.root, parsed.config, parsed.command_line)
    print(f"{parsed.target}: {parsed.target.stat().st_size / (1 << 20):.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
