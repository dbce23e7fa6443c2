"""The real interpreter by the real dynamic loader: imports, threads, time, configuration."""

import re
import unittest

from support import FIGURES, FULL, PYTHON, run, run_script


class Program(unittest.TestCase):
    def test_the_interpreter_prints(self):
        status, console = run(PYTHON, "-c", "print(1)")
        self.assertEqual(status, 0)
        self.assertRegex(console, r"(?m)^1$")
        self.assertNotIn("unknown system call", console)

    def test_asyncio_is_imported(self):
        script = "import time; t = time.time(); import asyncio; print('took', time.time() - t)"
        status, console = run(PYTHON, "-c", script)
        self.assertEqual(status, 0)
        FIGURES["import_asyncio_s"] = float(re.search(r"^took (\S+)", console, re.M)[1])

    def test_the_exit_status_and_an_uncaught_error_come_through(self):
        self.assertEqual(run(PYTHON, "-c", "import sys; sys.exit(3)")[0], 3)
        status, console = run(PYTHON, "-c", "import os; os.kill(os.getpid(), 6)")
        self.assertEqual(status, 134)
        self.assertIn("program killed (status 134): signal 6", console)

    def test_threads_and_queues_under_stress_with_a_busy_loop(self):
        seconds = 60 if FULL else 8
        status, console = run(PYTHON, "/tests/stress.py", str(seconds), timeout_s=seconds + 60)
        self.assertEqual(status, 0, console[-2000:])

    def test_threads_hold_different_vector_registers(self):
        for cpu in ("max", "qemu64"):
            with self.subTest(cpu):
                status, console = run("/usr/bin/vectors", "3", cpu=cpu)
                self.assertEqual(status, 0, console[-2000:])
                self.assertRegex(console, r"vectors: \d{3,} rounds, 0 wrong")

    def test_memory_that_runs_out_ends_the_program_with_that_reason(self):
        script = "x = [bytearray(1 << 20) for _ in range(4096)]"
        status, console = run(PYTHON, "-c", script)
        self.assertEqual(status, 137)
        self.assertIn("program killed (status 137): out of memory", console)
        self.assertNotIn("panic", console)

    def test_files_in_memory_fill_up_with_an_error_and_are_given_back(self):
        script = (
            "import os\n"
            "def fill():\n"
            "    with open('/data/f', 'wb', 0) as f:\n"
            "        n = 0\n"
            "        try:\n"
            "            while True: n += f.write(bytes(1 << 20))\n"
            "        except OSError as e: return n >> 20, e.errno\n"
            "first = fill(); os.unlink('/data/f'); second = fill()\n"
            "print('filled', first, second)\n"
        )
        _, console = run_script(script)
        found = re.search(r"filled \((\d+), 28\) \((\d+), 28\)", console)
        self.assertEqual(found[1], found[2], console[-500:])
        self.assertGreaterEqual(int(found[1]), 120)

    def test_the_clock_runs_and_the_date_is_the_hosts(self):
        script = (
            "import time\n"
            "m, d = time.monotonic(), time.time()\n"
            "time.sleep(1.5)\n"
            "print('slept', time.monotonic() - m, time.time() - d, 'date', int(d))\n"
        )
        import time

        _, console = run_script(script)
        found = re.search(r"slept (\S+) (\S+) date (\d+)", console)
        for text in (found[1], found[2]):
            self.assertAlmostEqual(float(text), 1.5, delta=0.3)
        self.assertAlmostEqual(int(found[3]), time.time(), delta=60)

    def test_configuration_becomes_arguments_environment_and_files(self):
        status, console = run(
            PYTHON, "/tests/settings.py", "one", "two words",
            env={"GREETING": "hello = world"},
            files=[("/etc/secret.key", b"abc\n")],
        )  # fmt: skip
        self.assertEqual(status, 0, console[-2000:])
        self.assertIn("arguments ['one', 'two words']", console)
        self.assertIn("variable hello = world", console)
        self.assertIn(f"mode 0o400 size 4\nsum {sum(b'abc' + bytes([10]))}", console)
        self.assertIn("refused /etc/secret.key 13", console)
        self.assertIn("refused /usr/bin/python3 30", console)
        self.assertIn("refused /usr/lib/new 30", console)
        before = console[: console.index("starting /usr/bin/python3")]
        self.assertNotIn("hello = world", before)

    def test_names_are_resolved_from_the_files_made_of_the_lease(self):
        script = (
            "import socket, time\n"
            "time.sleep(0.5)\n"
            "print(socket.gethostbyname('localhost'), socket.gethostname())\n"
            "print(open('/etc/hosts').read())\n"
        )
        line = "ip=192.168.7.2/24 gw=192.168.7.1 dns=192.168.7.3"
        _, console = run_script(script, command_line=line)
        self.assertIn("127.0.0.1 o3storage\n", console)
        self.assertIn("192.168.7.2 o3storage", console)


if __name__ == "__main__":
    unittest.main()
