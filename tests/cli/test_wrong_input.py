"""What cannot be meant ends with 1 and one line that says what to do, never with a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from o3storage.cli import run
from o3storage.cli._bench import _reason


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench", "--endpoint", "ftp://x"], "not a URL"),
        (["bench", "--endpoint", "http://[::1"], "not a URL"),
        (["bench", "--endpoint", "http://h:99999"], "not a URL"),
        (["status", "--endpoint", "127.0.0.1:8080"], "not a URL"),
        (["key", "list", "--endpoint", "http://"], "not a URL"),
        (["bench", "--seconds", "nan"], "--seconds"),
        (["bench", "--seconds", "inf"], "--seconds"),
        (["bench", "--seconds", "0"], "--seconds"),
        (["bench", "--size", "inf"], "not a size"),
        (["bench", "--size", "6G"], "5 GiB"),
        (["bench", "--objects", "0"], "--objects"),
        (["bench", "--connections", "0"], "--connections"),
        (["serve", "--ip", ""], "--ip"),
        (["serve", "--region", "a b"], "--region"),
        (["serve", "--domain", "a b"], "--domain"),
        (["serve", "--admin-listen", "host:1"], "--admin-listen"),
        (["serve", "--peers", ""], "--peers is empty"),
        (["serve", "--peers", " , "], "--peers is empty"),
        (["serve", "--join", ""], "--join is empty"),
        (["serve", "--port", "0", "--data-dir", "FILE"], "a file stands there"),
        (["serve", "--port", "0", "--data-dir", "FILE/below"], "a file stands there"),
        (["verify", "--data-dir", "FILE"], "there is no store"),
        (["inspect", "--data-dir", "nowhere"], "there is no store"),
    ],
)
def test_one_line(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "K")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S")
    Path("FILE").write_text("a file")
    assert run(arguments) == 1
    error = capsys.readouterr().err
    assert says in error and error.startswith("o3storage: ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_the_reason_of_an_error_document_is_one_line() -> None:
    document = b"<?xml?>\n<Error><Code>NoSuchKey</Code><Message>It is\nnot.</Message></Error>"
    assert _reason(document) == "NoSuchKey: It is not."
    assert _reason(b"gateway\n timeout") == "gateway timeout"
