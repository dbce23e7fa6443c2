"""Which region commands sign for, and what they say when the endpoint expects another."""

from __future__ import annotations

from pathlib import Path

import pytest

from o3storage.cli._args import parse
from o3storage.cli._store import CommandError, region
from o3storage.server import Running
from o3storage.server._running import write
from tests.support.running_store import RunningStore, run_command

ELSEWHERE = ("--endpoint", "http://h:1")


CASES: list[tuple[str | None, tuple[str, ...], dict[str, str], str]] = [
    (None, (), {}, "us-east-1"),
    (None, ELSEWHERE, {"AWS_DEFAULT_REGION": "d"}, "d"),
    (None, ELSEWHERE, {"AWS_REGION": "r", "AWS_DEFAULT_REGION": "d"}, "r"),
    ("own", ELSEWHERE, {}, "own"),
    ("own", ELSEWHERE, {"AWS_REGION": "r"}, "r"),
    ("own", ELSEWHERE, {"AWS_REGION": ""}, "own"),
    # The store of --data-dir says itself which; a shell may carry another provider's.
    ("own", (), {"AWS_REGION": "r"}, "own"),
    ("own", ("--region", "o"), {"AWS_REGION": "r"}, "o"),
    ("own", (*ELSEWHERE, "--region", "o"), {"AWS_REGION": "r"}, "o"),
]
"""(what running.json says, options, environment, what is signed for)."""


@pytest.mark.parametrize("case", CASES)
def test_where_the_region_comes_from(
    case: tuple[str | None, tuple[str, ...], dict[str, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    announced, words, environment, expected = case
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, environment.get(name, ""))
    if announced is not None:
        write(tmp_path, Running(1, "http://own:1", "http://own:1", announced))
    assert region(parse(["status", "--data-dir", str(tmp_path), *words])) == expected


def test_what_is_no_region_is_not_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text in ("a b", "é", "x\r\nHost: y", "a/b"):
        with pytest.raises(CommandError, match=r"--region: .* is no region"):
            region(parse(["status", "--data-dir", str(tmp_path), "--region", text]))
    monkeypatch.setenv("AWS_REGION", "a b")
    with pytest.raises(CommandError, match="is no region"):
        region(parse(["status", "--data-dir", str(tmp_path), *ELSEWHERE]))


@pytest.mark.slow
def test_commands_from_another_machine(tmp_path: Path) -> None:
    """There the data directory holds nothing: endpoint, key and region are all said."""
    with RunningStore(tmp_path / "data", "--region", "eu-west-1") as store:
        away = tmp_path / "away"
        away.mkdir()
        environment = store.environment()
        del environment["AWS_REGION"], environment["AWS_DEFAULT_REGION"]

        def command(*words: str, **extra: str) -> tuple[int, str]:
            done = run_command(
                *words, "--endpoint", store.url, cwd=away, env={**environment, **extra}
            )
            return done.returncode, done.stderr

        load = ("bench", "put", "--seconds", "0.1", "--connections", "1", "--size", "1")
        for words in (("status",), load):
            code, error = command(*words)
            assert code == 1 and error.count("\n") == 1, error
            assert "AuthorizationHeaderMalformed" in error
            assert error.endswith("; give --region eu-west-1\n")
            assert command(*words, "--region", "eu-west-1")[0] == 0
            assert command(*words, AWS_REGION="eu-west-1")[0] == 0
            assert command(*words, AWS_DEFAULT_REGION="eu-west-1")[0] == 0
        assert store.stop() == 0
