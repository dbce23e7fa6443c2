"""The source itself: its size, its crates on the host, its documents, its other architecture."""

import os
import re
import subprocess
import sys
import unittest

import document_calls

from support import FIGURES, OS

CARGO = "/usr/bin/cargo"


class Source(unittest.TestCase):
    def test_lines_and_unsafe_code_keep_their_limits(self):
        command = [sys.executable, OS / "tools/count_lines.py"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        FIGURES["lines"] = made.stdout.splitlines()
        self.assertEqual(made.returncode, 0, made.stdout + made.stderr)

    def test_the_crates_pass_their_tests_on_the_host(self):
        made = subprocess.run(
            [CARGO, "test", "--offline", "-p", "net", "-p", "vfs", "-p", "epoll",
             "--target-dir", OS / "build/host"],
            cwd=OS / "kernel", capture_output=True, text=True, check=False,
            env={**os.environ, "RUSTC": "/usr/bin/rustc", "RUSTDOC": "/usr/bin/rustdoc"},
        )  # fmt: skip
        self.assertEqual(made.returncode, 0, made.stdout[-3000:] + made.stderr[-3000:])
        passed = sum(map(int, re.findall(r"test result: ok\. (\d+) passed", made.stdout)))
        FIGURES["host_tests"] = passed
        self.assertGreaterEqual(passed, 17)

    def test_the_crates_type_check_for_the_other_architecture(self):
        root = subprocess.run(
            ["/usr/bin/rustc", "--print", "sysroot"], capture_output=True, text=True, check=True
        ).stdout.strip()
        vendor = f"{root}/lib/rustlib/src/rust/library/vendor"
        crates = [word for name in ("errno", "net", "vfs", "epoll") for word in ("-p", name)]
        made = subprocess.run(
            [CARGO, "check", "--offline", *crates, "-Zbuild-std=core,alloc",
             "--target", "aarch64-unknown-none", "--target-dir", OS / "build/aarch64",
             "--config", 'source.crates-io.replace-with="vendored"',
             "--config", f'source.vendored.directory="{vendor}"'],
            cwd=OS / "kernel", capture_output=True, text=True, check=False,
            env={**os.environ, "RUSTC": "/usr/bin/rustc", "RUSTC_BOOTSTRAP": "1"},
        )  # fmt: skip
        self.assertEqual(made.returncode, 0, made.stderr[-3000:])

    def test_the_list_of_calls_is_the_codes(self):
        self.assertEqual((OS / "SYSCALLS.md").read_text(), document_calls.document())

    def test_only_the_architecture_knows_the_machine(self):
        known = re.compile(r"\basm!|x86_64|cpuid|\bin8\(|\bout8\(|\brdmsr|\bcr[034]\b", re.I)
        for path in (OS / "kernel").rglob("*.rs"):
            inside = path.relative_to(OS / "kernel").parts
            if "target" in inside or "x86_64" in inside:
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                allowed = inside[:2] == ("src", "arch") or line.lstrip().startswith("//")
                self.assertFalse(known.search(line) and not allowed, f"{path}:{number}: {line}")

    def test_crates_without_unsafe_forbid_it(self):
        for crate in ("errno", "net", "vfs", "epoll"):
            text = (OS / f"kernel/{crate}/src/lib.rs").read_text()
            self.assertIn("#![forbid(unsafe_code)]", text)
        locked = (OS / "kernel/Cargo.lock").read_text()
        self.assertNotIn("source = ", locked)  # Nothing from outside.


if __name__ == "__main__":
    unittest.main()
