"""The same program under Linux and here: every line must be the same."""

import re
import subprocess
import tempfile
import unittest

from support import BUILD, FIGURES, run


class Oracle(unittest.TestCase):
    def test_calls_answer_as_linux_does(self):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            made = subprocess.run(
                [BUILD / "programs/oracle", folder],
                capture_output=True, text=True, check=True, timeout=60, cwd="/",
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        status, console = run("/usr/bin/oracle", "/data")
        self.assertEqual(status, 0, console[-2000:])
        wanted = {line[:3]: line for line in made.stdout.splitlines() if re.match(r"\d{3} ", line)}
        got = {line[:3]: line for line in console.splitlines() if re.match(r"\d{3} ", line)}
        count = int(re.search(r"^oracle: (\d+) cases", console, re.M)[1])
        FIGURES["oracle_cases"] = count
        self.assertGreaterEqual(count, 300)
        differ = [
            f"{line}\n    here: {got.get(key)}"
            for key, line in wanted.items()
            if got.get(key) != line
        ]
        self.assertEqual(len(wanted), len(got))
        self.assertEqual(differ, [], "\n".join(["", *differ]))


if __name__ == "__main__":
    unittest.main()
