"""Requests that are not S3's: health, metrics, the admin API and the page at `/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from o3storage.http import Request, Response

from . import _admin, _health, _screen
from ._addresses import names_this_machine

if TYPE_CHECKING:
    from ._app import Application


async def answer(app: Application, request: Request, path: str) -> Response | None:
    """On the S3 port; None for what is S3's."""
    if app.service.names_bucket_by_host(request):
        return None
    reads = request.method in {"GET", "HEAD"}
    if path == "/":
        accepts = request.headers.get("accept") or ""
        # (A query may be a presigned URL's, opened in a browser.)
        signed = "authorization" in request.headers or request.query
        if not reads or "text/html" not in accepts or signed:
            return None
        # Who asks may be anybody: others are not told where things lie on this machine.
        here = app.config.loopback and names_this_machine(request.host)
        command = app.screen.env_command() if here else _screen.ENV_ELSEWHERE
        page = _screen.landing_page(app.url, app.config.region, command)
        return Response(200, _screen.PAGE_HEADERS, page)
    if reads:
        found = await _health.answer(app, path)
        if found is not None:
            return found
    if app.admin_http is None:
        return await _answer_operator(app, request, path)
    return None


async def _answer_operator(app: Application, request: Request, path: str) -> Response | None:
    if path == "/metrics" and request.method in {"GET", "HEAD"}:
        return app.metrics.answer(request)
    if path.startswith(_admin.PREFIX + "/"):
        return await _admin.answer(app, request, path)
    return None


async def answer_admin(app: Application, request: Request) -> Response:
    """On the port of --admin-listen, where nothing is S3's."""
    path = request.path.decode("latin-1")
    if request.method in {"GET", "HEAD"}:
        found = await _health.answer(app, path)
        if found is not None:
            return found
    found = await _answer_operator(app, request, path)
    if found is not None:
        return found
    return Response(404, [("Content-Type", "text/plain")], b"not found\n")
