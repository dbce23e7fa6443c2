"""The `s3` marker: which operation, headers and error codes a test covers (see coverage.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3.harness import Store


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "s3(op, headers, errors): the S3 operation(s), header(s) and error code(s) a test covers",
    )


@pytest.fixture
def store() -> Iterator[Store]:
    """A store of its own, without buckets."""
    made = Store()
    yield made
    made.close()
