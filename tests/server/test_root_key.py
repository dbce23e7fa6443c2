"""The root key changes while the store runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.runtime import StallMeter, SystemEntropy
from o3storage.s3 import Miss
from o3storage.server import _root_key
from o3storage.server._app import Application
from o3storage.server._config import ServerConfig
from o3storage.server._credentials import Credentials


@pytest.mark.parametrize("kept", [True, False])
def test_the_key_before_is_worth_nothing_even_if_the_file_cannot_be_written(
    tmp_path: Path, kept: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "data"
    if kept:
        data_dir.mkdir()
    application = Application(ServerConfig(ip="127.0.0.1", port=0, data_dir=data_dir), StallMeter())
    before, after = (_root_key.make_key(SystemEntropy()) for _ in range(2))
    no_rows: Any = None
    application.credentials = Credentials(no_rows, [before])
    shared = {_root_key.ROOT_KEY: _root_key.to_shared(after)}
    membership: Any = SimpleNamespace(shared=shared)
    application.membership = membership
    application._shared_changed(_root_key.ROOT_KEY)
    assert application.credentials.find_now(before.key_id) is Miss.MISS
    found = application.credentials.find_now(after.key_id)
    assert found is not None and not isinstance(found, Miss)
    assert found.secret == after.secret.encode()
    if kept:
        assert _root_key.load(data_dir) == after
    said = capfd.readouterr().err
    assert ("root_key.not_kept" in said) is not kept
    assert after.secret not in said
