"""CPython's own tests of what the kernel offers it. In the full lane, with libpython3.11-testsuite.

`cpython_excluded.txt` lists what is left out, each with its reason.
"""

import re
import shutil
import unittest
from pathlib import Path

import build_image

from support import BUILD, FIGURES, FULL, KERNEL, OS, PROGRAMS, PYTHON, Machine, config, free_port

LIBRARY = Path("/usr/lib/python3.11")
MODULES = ("test_epoll", "test_selectors", "test_threading", "test_mmap", "test_socket")
# Of asyncio what touches the kernel; its tests of pure objects (tasks, futures, locks) take minutes
# under emulation and make no call.
ASYNCIO = (
    "test_base_events", "test_events", "test_streams", "test_sock_lowlevel", "test_selector_events",
    "test_runners", "test_unix_events", "test_server", "test_buffered_proto", "test_threads",
)  # fmt: skip
HELPERS = ("__init__.py", "support", "test_asyncio", "lock_tests.py", "signalinterproctester.py")
TIMEOUT_S = 1200


@unittest.skipUnless(FULL, "in the full lane only")
@unittest.skipUnless((LIBRARY / "test/test_epoll.py").exists(), "needs libpython3.11-testsuite")
class CPython(unittest.TestCase):
    def test_its_own_tests_pass(self):
        tests = BUILD / "cpython/test"
        shutil.rmtree(tests, ignore_errors=True)
        tests.mkdir(parents=True)
        certificates = [path.name for path in (LIBRARY / "test").glob("*.pem")]
        for name in (*HELPERS, *certificates, *(f"{module}.py" for module in MODULES)):
            source = LIBRARY / "test" / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, tests / name, ignore=ignored)
            else:
                shutil.copy(source, tests / name)
        extra = next(LIBRARY.glob("lib-dynload/_testcapi.*.so"))
        root = BUILD / "cpython.img"
        build_image.build(
            root,
            [(PROGRAMS, "/tests"), (tests, f"{LIBRARY}/test")],
            [(extra, f"{LIBRARY}/lib-dynload/{extra.name}")],
        )
        excluded = (OS / "tests/cpython_excluded.txt").read_bytes()
        names = [f"test.{module}" for module in MODULES]
        names += [f"test.test_asyncio.{module}" for module in ASYNCIO]
        data = config(
            PYTHON, "/tests/suite.py", *names, env={"HOME": "/home"},
            files=[("/run/excluded", excluded)],
        )  # fmt: skip
        with Machine(kernel=KERNEL, root=root, config=data, port=free_port()) as machine:
            status = machine.status(TIMEOUT_S)
            FIGURES["cpython"] = re.search(r"suite: .*", machine.console)[0]
            self.assertEqual(status, 0, machine.console[-8000:])


if __name__ == "__main__":
    unittest.main()
