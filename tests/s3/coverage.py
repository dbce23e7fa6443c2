"""Generates docs/s3-coverage.md: every operation, header, parameter and error code with the tests
that cover it, read from the `s3` markers of tests/s3.

    python -m tests.s3.coverage            write the page
    python -m tests.s3.coverage --check    exit 1 if the page is stale or a row is empty
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest

from o3storage.s3 import CODES
from o3storage.s3._operations import OPERATION_NAMES, TABLE
from o3storage.s3._router import COMMON_HEADERS, SUB_RESOURCES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "s3-coverage.md"

REQUEST_HEADERS = [
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "expires",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "origin",
    "access-control-request-headers",
    "access-control-request-method",
    "range",
    "x-amz-api-version",
    "x-amz-meta-*",
    "x-amz-trailer-signature",
]

RESPONSE_HEADERS = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "content-range",
    "etag",
    "location",
    "retry-after",
    "vary",
    "x-amz-bucket-region",
    "x-amz-checksum-type",
    "x-amz-copy-source-version-id",
    "x-amz-delete-marker",
    "x-amz-id-2",
    "x-amz-mp-parts-count",
    "x-amz-request-id",
    "x-amz-tagging-count",
    "x-amz-version-id",
    "x-content-type-options",
]

PARAMETERS = [
    "?X-Amz-Expires",
    "?X-Amz-Signature",
    "?attributes",
    "?bucket-region",
    "?continuation-token",
    "?delete",
    "?delimiter",
    "?encoding-type",
    "?fetch-owner",
    "?key-marker",
    "?list-type",
    "?marker",
    "?max-buckets",
    "?max-keys",
    "?max-parts",
    "?max-uploads",
    "?part-number-marker",
    "?partNumber",
    "?prefix",
    "?response-cache-control",
    "?response-content-disposition",
    "?response-content-encoding",
    "?response-content-language",
    "?response-content-type",
    "?response-expires",
    "?start-after",
    "?tagging",
    "?upload-id-marker",
    "?uploadId",
    "?uploads",
    "?version-id-marker",
    "?versionId",
]

SHOWN_TESTS = 4
"""Tests named in a row; more are counted."""


class Collector:
    """A pytest plugin that keeps the markers of what was collected."""

    def __init__(self) -> None:
        self.operations: dict[str, set[str]] = defaultdict(set)
        self.headers: dict[str, set[str]] = defaultdict(set)
        self.errors: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            name = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
            for marker in item.iter_markers("s3"):
                unknown = set(marker.kwargs) - {"op", "headers", "errors"}
                assert not unknown, f"{name}: marker s3 has no {unknown}"
                operations = marker.kwargs.get("op", [])
                for operation in [operations] if isinstance(operations, str) else operations:
                    self.operations[operation].add(name)
                for header in marker.kwargs.get("headers", []):
                    self.headers[header].add(name)
                for code in marker.kwargs.get("errors", []):
                    self.errors[code].add(name)


def collect() -> Collector:
    """The markers of all tests in this folder."""
    collector = Collector()
    folder = str(Path(__file__).parent)
    code = pytest.main(
        ["--collect-only", "-qq", "-p", "no:cacheprovider", "--no-header", folder],
        plugins=[collector],
    )
    assert code == 0, "the tests could not be collected"
    return collector


def request_headers() -> list[str]:
    """Every request header that an operation understands."""
    names = set(REQUEST_HEADERS) | COMMON_HEADERS
    for operation in TABLE.values():
        names |= operation.headers
    return sorted(names)


def rows(names: list[str], found: dict[str, set[str]], empty: list[str]) -> list[str]:
    lines = []
    for name in names:
        tests = sorted(found.get(name, set()))
        if not tests:
            empty.append(name)
        more = f" and {len(tests) - SHOWN_TESTS} more" if len(tests) > SHOWN_TESTS else ""
        shown = ", ".join(f"`{test}`" for test in tests[:SHOWN_TESTS])
        lines.append(f"| `{name}` | {shown}{more} |")
    return lines


def page() -> tuple[str, list[str]]:
    """(the page's text, names without a test)."""
    collector = collect()
    empty: list[str] = []
    unknown = sorted(
        (set(collector.operations) - set(OPERATION_NAMES) - {"*"})
        | (set(collector.errors) - set(CODES))
    )
    assert not unknown, f"markers name what does not exist: {unknown}"
    lines = [
        "# S3 coverage",
        "",
        "Every operation, header, parameter and error code of the S3 layer with the tests (in",
        "`tests/s3`) that cover it. Generated by `python -m tests.s3.coverage`; a row without a test",
        "fails the tests, and so does a page that is out of date.",
        "",
        "## Operations",
        "",
        "`*`: what holds for every operation.",
        "",
        "| operation | tests |",
        "|---|---|",
        *rows(["*", *OPERATION_NAMES], collector.operations, empty),
        "",
        "## Request headers",
        "",
        "An `x-amz-*` header that is not here is answered with NotImplemented.",
        "",
        "| header | tests |",
        "|---|---|",
        *rows(request_headers(), collector.headers, empty),
        "",
        "## Response headers",
        "",
        "| header | tests |",
        "|---|---|",
        *rows(RESPONSE_HEADERS, collector.headers, empty),
        "",
        "## Query parameters",
        "",
        "| parameter | tests |",
        "|---|---|",
        *rows(PARAMETERS, collector.headers, empty),
        "",
        "## Error codes",
        "",
        "| code | status | tests |",
        "|---|---|---|",
    ]
    for line, code in zip(rows(sorted(CODES), collector.errors, empty), sorted(CODES), strict=True):
        name, rest = line.split(" | ", 1)
        lines.append(f"{name} | {CODES[code][0]} | {rest}")
    built = {sub.removeprefix("copy:") for _, _, sub in TABLE}
    missing = sorted(SUB_RESOURCES - built)
    lines += [
        "",
        "## Sub-resources that answer NotImplemented",
        "",
        ", ".join(f"`?{name}`" for name in missing) + ".",
        "",
        "`test_router.py::test_no_sub_resource_that_is_not_implemented_reaches_an_object_or_bucket_"
        "operation` walks them all with every method.",
        "",
    ]
    return "\n".join(lines), empty


def main(arguments: list[str]) -> int:
    text, empty = page()
    if empty:
        print(f"no test covers: {', '.join(empty)}", file=sys.stderr)
        return 1
    if "--check" in arguments:
        if not PAGE.exists() or PAGE.read_text() != text:
            print(f"{PAGE} is out of date: run python -m tests.s3.coverage", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
