"""Finds the names on a page of documentation and says which of them do not exist.

What counts as a name: a code span (`...`) that is a path of the repository, with or without a
`:function` behind it; `test_x.py::test_name`; an option of the command line; an O3_ variable; an o3_
metric; and, in code too, every call of `o3storage` and `make`. Relative links are looked up as well.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import operator
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from o3storage.cli._args import build_parser

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "src" / "o3storage"

TOP = ("src", "tests", "tools", "bench", "native", "packaging", "docs", "os", ".ci")
ROOMS = tuple(sorted(path.name for path in SOURCE.iterdir() if path.is_dir()))

SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(
    r"([\w.-]+(?:/[\w.-]+)+/?|[\w-]+\.(?:py|md|rs|toml|lock|sh|service))(?::([\w.]+))?"
)
TEST = re.compile(r"(test_\w+\.py)::(\w+)")
OPTION = re.compile(r"--[a-z][a-z-]*\b")
COMMAND = re.compile(r"(?<![\w/.-])(?:\.venv/bin/)?o3storage((?:[ ]+[\w./:,@=\[\]'\"-]+)*)")
MAKE = re.compile(r"(?<![\w/-])make ([a-z]+)\b")
VARIABLE = re.compile(r"\bO3_[A-Z_]+\b")
METRIC = re.compile(r"\bo3_[a-z0-9_]+\b")

OTHER_OPTIONS = frozenset({"--locked", "--no-index", "--release", "--aws-sigv4", "--no-ssl"})
"""Of cargo, pip, curl and s3cmd."""


def problems(page: Path, text: str | None = None) -> list[str]:
    """`name: why`, for every name on the page that does not exist."""
    text = page.read_text() if text is None else text
    found: list[str] = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        if not (page.parent / target.partition("#")[0]).exists():
            found.append(f"{target}: no such file to link to")
    prose, code = _split(text)
    spans = SPAN.findall(prose)
    for span in spans:
        found += _span(span, page)
    for line in (*spans, *code):
        found += _commands(line)
    for name in sorted({name for line in (*spans, *code) for name in VARIABLE.findall(line)}):
        if name.removesuffix("_FILE") not in _source_text() and name not in _variables_of_tests():
            found.append(f"{name}: no such variable in src or tests")
    for name in sorted({name for line in (*spans, *code) for name in METRIC.findall(line)}):
        if name not in metric_names():
            found.append(f"{name}: no such metric")
    return found


def _split(text: str) -> tuple[str, list[str]]:
    """(prose, lines of code blocks)."""
    prose, code = [], []
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            code.append(line)
        else:
            prose.append(line)
    return "\n".join(prose), code


def _span(span: str, page: Path) -> list[str]:
    test = TEST.fullmatch(span)
    if test:
        return _test(span, *test.groups())
    if OPTION.fullmatch(span):
        known = span in OTHER_OPTIONS or any(span in words for words in command_options().values())
        return [] if known else [f"{span}: no such option"]
    path = PATH.fullmatch(span)
    if path is None:
        return []
    name, function = path.groups()
    if not _is_ours(name, function):
        return []
    file = _find(name, page)
    if file is None:
        return [f"{span}: no such file"]
    if function and function not in _names_in(file):
        return [f"{span}: no {function} in {name}"]
    return []


def _is_ours(name: str, function: str | None) -> bool:
    first = name.split("/")[0]
    if "/" not in name:
        return name.endswith((".py", ".md")) or function is not None
    return first in TOP or (first in ROOMS and name.endswith((".py", "/core")))


def _find(name: str, page: Path) -> Path | None:
    for base in (ROOT, SOURCE, page.parent):
        if (base / name).exists():
            return base / name
    if "/" not in name:  # the page speaks of a room's own file
        return next((path for top in ("src", "tests") for path in (ROOT / top).rglob(name)), None)
    return None


def _test(span: str, file: str, function: str) -> list[str]:
    files = list((ROOT / "tests").rglob(file))
    if not files:
        return [f"{span}: no such file"]
    if not any(function in _names_in(path) for path in files):
        return [f"{span}: no {function} in {file}"]
    return []


@cache
def _names_in(file: Path) -> frozenset[str]:
    """Functions, classes, their methods and fields, and constants; of Rust, functions."""
    if file.is_dir():
        return frozenset()
    text = file.read_text()
    if file.suffix == ".rs":
        return frozenset(re.findall(r"\bfn (\w+)", text))
    if file.suffix != ".py":
        return frozenset()
    names: set[str] = set()

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(prefix + node.name)
            elif isinstance(node, ast.ClassDef):
                names.add(prefix + node.name)
                walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(prefix + node.target.id)
            elif isinstance(node, ast.Assign):
                names.update(prefix + t.id for t in node.targets if isinstance(t, ast.Name))

    walk(ast.parse(text).body, "")
    return frozenset(names)


# --- the command line, make, the environment, metrics


@cache
def command_options() -> dict[str, frozenset[str]]:
    """command -> its options; `key create` and the like stand under both words."""
    found: dict[str, frozenset[str]] = {"": frozenset()}

    def walk(parser: argparse.ArgumentParser, name: str) -> None:
        options = {word for action in parser._actions for word in action.option_strings}
        found[name] = frozenset(options | ({"--version"} if not name else set()))
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, sub in action.choices.items():
                    walk(sub, f"{name} {word}".strip())

    walk(build_parser(), "")
    return found


def _commands(line: str) -> list[str]:
    found = []
    for call in COMMAND.findall(line):
        words = call.split()
        name = ""
        for word in words:
            if f"{name} {word}".strip() not in command_options():
                break
            name = f"{name} {word}".strip()
        plain = not words or words[0].startswith("-")
        if not name and not plain and re.fullmatch(r"[a-z]+", words[0]):
            found.append(f"o3storage {words[0]}: no such command")
            continue
        for option in OPTION.findall(call):
            if option not in command_options()[name or "serve"] | command_options()[""]:
                found.append(f"o3storage {name} {option}: no such option")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    found += [f"make {t}: no such target" for t in MAKE.findall(line) if t not in targets]
    return found


@cache
def _variables_of_tests() -> frozenset[str]:
    """What tests read from their environment."""
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    return frozenset(re.findall(r'environ\.get\(\s*"(O3_\w+)"', "\n".join(texts)))


@cache
def _source_text() -> str:
    return "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))


@cache
def metric_names() -> frozenset[str]:
    """What server/_metrics.py registers, read from its text."""
    text = (SOURCE / "server" / "_metrics.py").read_text()
    names = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return frozenset(name for name in names if isinstance(name, str) and METRIC.fullmatch(name))


@cache
def constants(file: Path) -> dict[str, float]:
    """The numbers that a module's constants stand for, without importing it."""
    found: dict[str, float] = {}

    def value(node: ast.expr | None) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.Name):
            return found[node.id]
        assert isinstance(node, ast.BinOp)
        left, right = value(node.left), value(node.right)
        kinds: dict[type[ast.operator], Callable[[float, float], float]] = {
            ast.Add: operator.add,
            ast.Sub: operator.sub,
            ast.Mult: operator.mul,
            ast.Div: operator.truediv,
            ast.FloorDiv: operator.floordiv,
            ast.Pow: operator.pow,
            ast.LShift: operator.lshift,
        }
        return kinds[type(node.op)](left, right)

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                walk(node.body, f"{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                if isinstance(target, ast.Name):
                    with contextlib.suppress(AssertionError, KeyError):
                        found[prefix + target.id] = value(node.value)
            elif isinstance(node, ast.ImportFrom) and node.module == "o3storage.storage._types":
                types = constants(SOURCE / "storage" / "_types.py")
                found.update({a.name: types[a.name] for a in node.names if a.name in types})

    walk(ast.parse(file.read_text()).body, "")
    return found
