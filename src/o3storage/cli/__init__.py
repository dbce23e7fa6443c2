"""The command line: parse, call, print.

`run(arguments)` is all that the entry module calls. A failure that a user can mend is one line on
stderr and exit code 1; wrong usage is 2; a bare traceback is a bug.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ._args import parse


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    options = parse(arguments)
    # Imports stand inside the branches: `o3storage env` in a shell's start-up must be quick.
    from ._client import ClientError
    from ._store import CommandError

    try:
        if options.command == "version":
            from o3storage import _native

            print(f"o3storage {_native.__version__}")
            return 0
        if options.command == "serve":
            from ._serve import serve

            return serve(options)
        if options.command == "verify":
            from ._offline import verify

            return verify(options)
        if options.command == "inspect":
            from ._offline import inspect

            return inspect(options)
        if options.command == "bench":
            from ._bench import bench

            return bench(options)
        if options.command == "simulate":
            from ._simulate import run_seeds

            return run_seeds(options)
        if options.command == "node":
            from ._node_commands import node

            return node(options)
        if options.command == "range":
            from ._range_commands import ranges

            return ranges(options)
        from ._admin_commands import env, key, status

        commands: dict[str, Callable[[argparse.Namespace], int]] = {
            "status": status,
            "env": env,
            "key": key,
        }
        return commands[options.command](options)
    except (CommandError, ClientError) as error:
        print(f"o3storage: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
