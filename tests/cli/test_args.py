"""The command line's words: what is meant, and what is refused with which exit code."""

from __future__ import annotations

import argparse

import pytest

from o3storage.cli._args import build_parser, parse


def test_without_a_command_the_store_is_served() -> None:
    options = parse([])
    assert (options.command, options.ip, options.port) == ("serve", "127.0.0.1", 8080)
    assert options.data_dir == "./o3data"


def test_options_without_a_command_are_those_of_serve() -> None:
    options = parse(["--ip", "192.168.1.10", "--port", "9000", "--data-dir", "status"])
    assert (options.command, options.ip, options.port) == ("serve", "192.168.1.10", 9000)
    assert options.data_dir == "status"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--port", "70000"],
        ["--port", "x"],
        ["key"],
        ["bench", "sing"],
        ["--nope"],
        ["simulate", "--seeds", "0"],
        ["simulate", "--seeds", "many"],
    ],
)
def test_wrong_usage_ends_with_2_and_says_where_help_is(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown and 'eval "$(o3storage env)"' in shown


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Of all commands, and "" for the whole."""
    whole = build_parser()
    found = next(a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    return {"": whole, **found.choices}


def test_every_example_of_the_help_parses() -> None:
    for name, parser in parsers().items():
        seen = 0
        for line in (parser.epilog or "").splitlines():
            words = line.split("  ")
            command = next((w.strip() for w in words if w.strip().startswith("o3storage")), None)
            if command:
                parse(command.split()[1:])
                seen += 1
        assert seen or name in {"env", "version"}, name


@pytest.mark.parametrize("word", ["start", "stop", "gc"])
def test_what_other_stores_call_a_command_is_answered_with_what_to_do(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([word])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"no command {word}: " in said and "o3storage s" in said
