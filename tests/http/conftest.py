"""Tests of connections run over TCP and over TLS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http.serving import OVER_TLS

BOTH = ("test_connection", "test_connection_bodies", "test_answer", "test_deadlines")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in BOTH:
        metafunc.parametrize("over", ["tcp", "tls"], indirect=True)


@pytest.fixture(autouse=True)
def over(request: pytest.FixtureRequest) -> Iterator[str]:
    name = getattr(request, "param", "tcp")
    token = OVER_TLS.set(name == "tls")
    yield name
    OVER_TLS.reset(token)
