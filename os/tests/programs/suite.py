"""Runs CPython's own tests by module name, without those excluded, each with its reason."""

import os
import sys
import time
import unittest

import test.support
import test.support.socket_helper

# There is one process: what starts another cannot run.
test.support.has_fork_support = False
test.support.has_subprocess_support = False
# The helper expects that such a socket can at least be made.
test.support.socket_helper._bind_nix_socket_error = OSError("no AF_UNIX sockets with names")


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


class Result(unittest.TextTestResult):
    """Says what is slow, and begins each line of a failure so that it is found on the console."""

    def startTest(self, item):
        self.began = time.monotonic()
        super().startTest(item)

    def stopTest(self, item):
        took = time.monotonic() - self.began
        if took > 5:
            print(f"slow {item.id()} {took:.1f} s", flush=True)
        super().stopTest(item)

    def addFailure(self, item, error):
        super().addFailure(item, error)
        print(f"failed {item.id()}", flush=True)

    def addError(self, item, error):
        super().addError(item, error)
        print(f"failed {item.id()}", flush=True)


def main() -> int:
    os.chdir("/tmp")
    with open("/run/excluded") as file:
        excluded = dict(line.rstrip("\n").split("\t", 1) for line in file)
    chosen = unittest.TestSuite()
    left_out = 0
    for name in sys.argv[1:]:
        for item in flatten(unittest.defaultTestLoader.loadTestsFromName(name)):
            words = item.id().split(".")
            names = [".".join(words[:n]) for n in range(1, len(words) + 1)]
            if any(prefix in excluded for prefix in names):
                left_out += 1
            else:
                chosen.addTest(item)
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=0, resultclass=Result)
    result = runner.run(chosen)
    failed = len(result.failures) + len(result.errors)
    print(f"suite: {result.testsRun} run, {failed} failed, {len(result.skipped)} skipped,",
          f"{left_out} excluded", flush=True)  # fmt: skip
    return 1 if failed or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main())
