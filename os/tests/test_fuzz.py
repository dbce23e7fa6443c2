"""Random system calls from four threads; the kernel stays up and everything is given back."""

import re
import unittest

from support import FIGURES, FULL, run

CALLS = 10_000_000 if FULL else 300_000
# The kernel's heap keeps the pieces it once cut, and connections that still close keep what they
# hold for up to a minute. Not a leak: one seed left 148 after 30,000 calls, 913 after 300,000 and
# 145 after 900,000.
FRAMES_KEPT = 2048


class Fuzz(unittest.TestCase):
    def test_random_calls(self):
        for seed in ("1", "20261122") if not FULL else ("1",):
            with self.subTest(seed):
                count = str(CALLS)
                status, console = run("/usr/bin/fuzz", count, seed, timeout_s=3000)
                self.assertEqual(status, 0, console[-3000:])
                found = re.search(
                    r"fuzz: (\d+) calls, (\d+) never succeeded, least (\d+), (-?\d+) frames lost, "
                    r"next fd (\d+)", console)  # fmt: skip
                self.assertGreater(int(found[1]), CALLS // 4)
                self.assertLessEqual(int(found[4]), FRAMES_KEPT, console[-600:])
                self.assertEqual(int(found[5]), 3)
                self.assertIn("0 writable and executable, 0 kernel pages open", console)
                self.assertNotIn("panic", console)
                FIGURES["fuzz"] = {
                    "calls": int(found[1]), "least_successes": int(found[3]),
                    "frames_lost": int(found[4]),
                    "table": re.findall(r"^call (\d+): (.*)$", console, re.M),
                }  # fmt: skip


if __name__ == "__main__":
    unittest.main()
