"""The `o3storage` command. Closes the door to OpenSSL before anything else is imported.

CPython maps OpenSSL into the process on `import asyncio` or `import hashlib`. With these names
refused, the standard library falls back by itself, and every hash and all of TLS is the native
module's. This stands in the entry module, never in the package, so that a program that imports
`o3storage` keeps its own `ssl`.
"""

from __future__ import annotations

import sys

for _name in ("_ssl", "_hashlib", "ssl"):
    sys.modules[_name] = None  # type: ignore[assignment]


def main() -> int:
    """Run the command line. Exit code 0, 1 (failed, one line on stderr says why) or 2 (usage)."""
    from o3storage.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
