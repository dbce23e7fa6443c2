"""`key rotate-master`: the secret that opens node.keys is exchanged; the store must be stopped."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from o3storage.crypto import MASTER_KEY_FILE, MasterKey, rotate_master
from o3storage.runtime import SystemEntropy

from ._offline import stopped_store
from ._store import CommandError


def rotate(options: argparse.Namespace) -> int:
    """Wrap the node's keys with a new master key. What is stored is not touched. Raises
    CommandError; a crash at any point leaves a store that opens with the old or the new one."""

    async def run() -> str:
        async with stopped_store(options) as (opened, _):
            entropy = SystemEntropy()
            new = MasterKey.generate(entropy)
            if opened.keys.master_in_data_dir:
                if options.to is not None:
                    raise CommandError(
                        f"{MASTER_KEY_FILE} lies in {opened.path} and is replaced there: leave "
                        "out --to"
                    )
                place = opened.path / MASTER_KEY_FILE
            elif options.to is None:
                raise CommandError(
                    "the master key of this store is kept elsewhere: name a new file for the next "
                    "one with --to FILE"
                )
            else:
                place = Path(options.to)
                _write_new(place, new)
            await rotate_master(opened.disk, opened.keys, new, entropy=entropy)
            return str(place)

    place = asyncio.run(run())
    print(f"the new master key is in {place}")
    print("Back it up now: without it the data is lost. The old one opens nothing any more.")
    if options.to is not None:
        print(f"Start the store with O3_MASTER_KEY_FILE={place}")
    return 0


def _write_new(path: Path, key: MasterKey) -> None:
    """The key's file, durable before anything is wrapped with it; one that is there is kept."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, key.text().encode() + b"\n")
            os.fsync(file)
        finally:
            os.close(file)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        raise CommandError(f"{path} is there already; name a new file with --to") from None
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
