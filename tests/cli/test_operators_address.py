"""--admin-listen and --metrics-token-file: who reaches what, on which address."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.running_store import RunningStore, run_command

pytestmark = pytest.mark.slow

TOKEN = "a token of 26 characters..."


def fetch(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_and_the_admin_api_leave_the_s3_address(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    (tmp_path / "token").write_text(TOKEN + "\nthe second line is not read\n")
    with RunningStore(
        data_dir,
        *("--admin-listen", "127.0.0.1:0", "--metrics-token-file", str(tmp_path / "token")),
    ) as store:
        assert store.admin_url != store.url
        # On the S3 address they are paths like any other, which are S3's to refuse.
        for path in ("/metrics", "/-/admin/v1/status"):
            status, text = fetch(store.url + path)
            assert (status, "<Code>AccessDenied</Code>" in text) == (403, True), path
        for path in ("/", "/bucket", "/bucket/key"):
            assert fetch(store.admin_url + path) == (404, "not found\n")
        for url in (store.url, store.admin_url):
            assert fetch(url + "/health/ready") == (200, "ready\n")

        metrics = store.admin_url + "/metrics"
        for wrong in ("", "Bearer", "Bearer x", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"):
            headers = {"Authorization": wrong} if wrong else {}
            assert fetch(metrics, **headers) == (401, "a bearer token is needed\n"), wrong
        for scheme in ("Bearer", "bearer"):
            status, text = fetch(metrics, Authorization=f"{scheme} {TOKEN}")
            assert status == 200 and "\no3_write_enabled 1\n" in text

        # The commands find the address by the data directory; unsigned nobody gets in.
        status, text = fetch(store.admin_url + "/-/admin/v1/status")
        assert (status, "AccessDenied" in text) == (403, True)
        done = run_command("status", "--data-dir", str(data_dir))
        assert done.returncode == 0 and "writes    accepted" in done.stdout, done.stderr
        assert store.stop() == 0
    assert TOKEN not in store.log_path.read_text()


def test_without_these_options_all_is_on_one_address(tmp_path: Path) -> None:
    with RunningStore(tmp_path / "data") as store:
        assert store.admin_url == store.url
        assert fetch(store.url + "/metrics")[0] == 200
        assert fetch(store.url + "/-/admin/v1/status")[0] == 403
        assert store.stop() == 0
