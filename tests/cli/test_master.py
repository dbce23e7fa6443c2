"""`o3storage key rotate-master` on a stopped store."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.support.running_store import RunningStore, run_command


def test_a_new_master_key_takes_the_place_of_the_old(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with RunningStore(data_dir) as store:
        key = (store.key_id, store.secret)
        refused = run_command("key", "rotate-master", "--data-dir", str(data_dir))
        assert refused.returncode == 1 and str(store.pid) in refused.stderr
        assert store.stop() == 0
    old = (data_dir / "master.key").read_text()
    done = run_command("key", "rotate-master", "--data-dir", str(data_dir))
    assert done.returncode == 0 and str(data_dir / "master.key") in done.stdout, done.stderr
    new = (data_dir / "master.key").read_text()
    assert new != old and new.strip() not in done.stdout
    assert stat.S_IMODE((data_dir / "master.key").stat().st_mode) == 0o600
    with RunningStore(data_dir) as store:
        assert (store.key_id, store.secret) == key
        assert store.stop() == 0
    (data_dir / "master.key").write_text(old)
    assert run_command("verify", "--data-dir", str(data_dir)).returncode == 1


def test_one_that_is_kept_elsewhere_goes_to_a_new_file(tmp_path: Path) -> None:
    data_dir, outside, after = tmp_path / "data", tmp_path / "key", tmp_path / "next"
    with RunningStore(data_dir) as store:
        assert store.stop() == 0
    (data_dir / "master.key").rename(outside)
    environment = {**os.environ, "O3_MASTER_KEY_FILE": str(outside)}
    command = ("key", "rotate-master", "--data-dir", str(data_dir))
    for extra in ((), ("--to", str(outside))):
        refused = run_command(*command, *extra, env=environment)
        assert refused.returncode == 1 and "--to" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    done = run_command(*command, "--to", str(after), env=environment)
    assert done.returncode == 0 and f"O3_MASTER_KEY_FILE={after}" in done.stdout, done.stderr
    assert stat.S_IMODE(after.stat().st_mode) == 0o600
    assert not (data_dir / "master.key").exists()
    verify = ("verify", "--data-dir", str(data_dir))
    assert run_command(*verify, env=environment).returncode == 1
    environment["O3_MASTER_KEY_FILE"] = str(after)
    assert run_command(*verify, env=environment).returncode == 0
