"""Attacks from ring 3: each is killed by name or refused, and the kernel goes on to power off."""

import re
import unittest

from support import FULL, run

SEGV, ILL, TRAP = 139, 132, 133

KILLED = dict.fromkeys(
    [
        "kernel-read",
        "kernel-write",
        "kernel-jump",
        "linear-read",
        "apic-read",
        "noncanonical-read",
        "noncanonical-jump",
        "text-write",
        "constant-write",
        "null-read",
        "null-jump",
        "guard-page",
        "none-page",
        "stack-run",
        "heap-run",
        "page-run",
        "data-run",
        "in",
        "out",
        "cli",
        "sti",
        "hlt",
        "rdmsr",
        "wrmsr",
        "mov-cr3",
        "read-cr0",
        "mov-dr7",
        "lgdt",
        "invlpg",
        "iret-to-ring-0",
        "int-timer",
        "int-page-fault",
        "int-80",
        "far-call",
        "sidt",
        "xsetbv",
        "sigreturn-rip",
        "sigreturn-flags",
        "sigreturn-stack",
        "signal-low-stack",
        "swapgs",
        "sysret",
    ],
    SEGV,
)
KILLED["trap-flag"] = TRAP
# Some processors call these undefined outside ring 0, others protected.
UNDEFINED = ("swapgs", "sysret", "xsetbv")
REFUSED = ("refuse", "lengths", "survive", "unmap-race")
# The fast lane takes one of each kind.
FAST = [
    "kernel-read",
    "kernel-write",
    "kernel-jump",
    "text-write",
    "stack-run",
    "heap-run",
    "null-read",
    "guard-page",
    "out",
    "cli",
    "wrmsr",
    "mov-cr3",
    "int-timer",
    "sidt",
    "sigreturn-rip",
    "sigreturn-flags",
    "sigreturn-stack",
    "signal-low-stack",
]


class Isolation(unittest.TestCase):
    def assert_sound(self, console: str) -> None:
        self.assertIn("0 writable and executable, 0 kernel pages open", console)
        self.assertNotIn("panic", console)
        self.assertNotIn("NOT ", console)

    def test_attacks_that_are_killed(self):
        for name in KILLED if FULL else FAST:
            with self.subTest(name):
                status, console = run("/usr/bin/attack", name)
                wanted = (SEGV, ILL) if name in UNDEFINED else (KILLED[name],)
                self.assertIn(status, wanted, console[-1500:])
                self.assertIn("program killed", console)
                self.assert_sound(console)

    def test_attacks_that_are_refused(self):
        for name in REFUSED:
            with self.subTest(name):
                status, console = run("/usr/bin/attack", name)
                self.assertEqual(status, 0, console[-1500:])
                self.assertIn("refused", console)
                self.assert_sound(console)

    def test_no_two_boots_lay_the_program_out_alike(self):
        script = "x = object(); print('laid out', id(x), id(bytearray(1 << 24)))"
        seen = set()
        for _ in range(3):
            seen.add(re.search(r"laid out .*", run("/usr/bin/python3", "-c", script)[1])[0])
        self.assertEqual(len(seen), 3)


if __name__ == "__main__":
    unittest.main()
