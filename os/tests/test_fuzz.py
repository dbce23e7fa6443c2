"""Random system calls from four threads; the kernel stays up and everything is given back."""

import errno
import os
import re
import subprocess
import unittest

import document_calls

from support import FIGURES, FULL, OS, run

CALLS = 300_000
# Every frame that does not come back must be one that the kernel's heap still holds. In the fast
# lane several hundred connections are not at their end (60 s) when frames are counted: 407 and 486
# frames after 300,000 calls. After that time the heap's tables are what has grown.
FRAMES_KEPT = 1024
FRAMES_KEPT_SETTLED = 512
# The program's own pages and their tables: stacks, which the library keeps, touched further down.
FRAMES_OF_PROGRAM = 32
# The stated count, of aimed calls among random ones.
AIMED_CALLS = 10_000_000
# Closed connections come to their end (60 s, RFC 9293) before anything is counted.
SETTLE_S = 65
# Every call that is offered succeeds this often among them.
SUCCESSES = 1_000
# Mutated frames into the stack, on the host, with the stack's own assertions.
FRAMES = 100_000_000
# A machine lives through it once; it ends every run.
ONCE = {"exit_group"}
LINE = re.compile(r"^call (\d+): (\d+) ok(.*)$", re.M)
OWNERS = re.compile(r"of the frames lost (-?\d+) are in the kernel's heap, (-?\d+) in files")

ERRNO_HEAD = """# What the fuzzer's calls answered

Made by the full lane's `tests/test_fuzz.py`: {calls} random calls from four threads in ring 3, of
which {aimed} were aimed (right arguments on a live descriptor). `pause` and `rt_sigsuspend` have no
other answer than EINTR: it counts as their success. `rt_sigreturn` succeeded where a thread went on
after its handler; `exit_group` ends the run.

| number | call | calls | succeeded | errors |
|---|---|---|---|---|
"""


def offered() -> dict[int, str]:
    """Number -> name of every call that SYSCALLS.md says is offered."""
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", document_calls.document(), re.M)
    return {int(number): name for number, name in rows}


def read_counts(console: str) -> tuple[re.Match[str], dict[int, tuple[int, str]]]:
    """The last line's counts, and number -> successes and errors of each call."""
    found = re.search(
        r"fuzz: (?P<calls>\d+) calls, (?P<aimed>\d+) aimed, \d+ never succeeded, "
        r"least (?P<least>\d+), (?P<frames>-?\d+) frames lost, "
        r"(?P<sockets>-?\d+) sockets lost, next fd (?P<fd>\d+)", console)  # fmt: skip
    return found, {int(n): (int(ok), rest) for n, ok, rest in LINE.findall(console)}


def errno_table(found: re.Match[str], answers: dict[int, tuple[int, str]]) -> str:
    rows = [ERRNO_HEAD.format(calls=found["calls"], aimed=found["aimed"])]
    for number, name in sorted(offered().items()):
        succeeded, rest = answers.get(number, (0, ""))
        errors = [(int(n), int(code)) for code, n in re.findall(r"errno (\d+) x (\d+)", rest)]
        text = ", ".join(f"{errno.errorcode[code]} {n}" for n, code in sorted(errors)[::-1])
        calls = succeeded + sum(n for n, _ in errors)
        rows.append(f"| {number} | {name} | {calls} | {succeeded} | {text} |\n")
    return "".join(rows)


class Fuzz(unittest.TestCase):
    def assert_held(self, lost: int, console: str) -> None:
        """Nothing is in files, and nothing lost but what the heap holds."""
        heap, files = map(int, OWNERS.search(console).groups())
        self.assertEqual(files, 0)
        self.assertLessEqual(lost - heap, FRAMES_OF_PROGRAM, console[-600:])

    @unittest.skipIf(FULL, "the full lane aims")
    def test_random_calls(self):
        for seed in ("1", "20261122"):
            with self.subTest(seed):
                status, console = run("/usr/bin/fuzz", str(CALLS), seed, timeout_s=3000)
                self.assertEqual(status, 0, console[-3000:])
                found = re.search(
                    r"fuzz: (\d+) calls, (\d+) never succeeded, least (\d+), (-?\d+) frames lost, "
                    r"next fd (\d+)", console)  # fmt: skip
                self.assertGreater(int(found[1]), CALLS // 4)
                self.assertLessEqual(int(found[4]), FRAMES_KEPT, console[-600:])
                self.assert_held(int(found[4]), console)
                self.assertEqual(int(found[5]), 3)
                self.assertIn("0 writable and executable, 0 kernel pages open", console)
                self.assertNotIn("panic", console)

    @unittest.skipUnless(FULL, "in the full lane only")
    def test_aimed_calls(self):
        arguments = ("/usr/bin/aimed", str(AIMED_CALLS), "1", str(SETTLE_S))
        status, console = run(*arguments, timeout_s=3000)
        self.assertEqual(status, 0, console[-3000:])
        found, answers = read_counts(console)
        (OS / "ERRNO.md").write_text(errno_table(found, answers))
        FIGURES["fuzz"] = {name: int(text) for name, text in found.groupdict().items()}
        self.assertGreaterEqual(int(found["calls"]), AIMED_CALLS)
        rare = {
            name: answers.get(number, (0,))[0]
            for number, name in offered().items()
            if name not in ONCE and answers.get(number, (0,))[0] < SUCCESSES
        }
        self.assertEqual(rare, {})
        self.assertLessEqual(int(found["frames"]), FRAMES_KEPT_SETTLED, console[-600:])
        self.assert_held(int(found["frames"]), console)
        self.assertEqual((int(found["sockets"]), int(found["fd"])), (0, 3))
        self.assertRegex(console, r"faults, 0 sockets")
        self.assertIn("0 writable and executable, 0 kernel pages open", console)
        self.assertNotIn("panic", console)

    @unittest.skipUnless(FULL, "in the full lane only")
    def test_mutated_frames(self):
        command = ["/usr/bin/cargo", "run", "--release", "--offline", "-p", "net"]
        command += ["--example", "fuzz"]
        rust = {"RUSTC": "/usr/bin/rustc", "CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS": "true"}
        made = subprocess.run(
            [*command, "--target-dir", OS / "build/host", "--", str(FRAMES), "1"],
            cwd=OS / "kernel", capture_output=True, text=True, check=False,
            env={**os.environ, **rust},
        )  # fmt: skip
        self.assertEqual(made.returncode, 0, made.stderr[-3000:])
        FIGURES["mutated_frames"] = made.stdout.strip()
        self.assertIn(f"frames: {FRAMES}", made.stdout)


if __name__ == "__main__":
    unittest.main()
