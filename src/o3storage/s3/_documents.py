"""XML documents of requests: read piece by piece, checked as a body, and bounded all together.

A document is limited by itself (`_xml.py`), and takes up to 26 MiB once it is parsed. What all of
them take is limited too, or a few dozen completions of 10,000 parts at once would go beyond the
memory that the store promises to stay in (P8).
"""

from __future__ import annotations

import asyncio
from typing import Final

from o3storage.s3._context import Context
from o3storage.s3._errors import RETRY_AFTER_S, S3Error
from o3storage.s3._payload import open_body
from o3storage.s3._xml import FEED_BYTES, MAX_XML_BYTES, Element, XmlError, XmlReader

MAX_DOCUMENTS_BYTES: Final = 64 * 1024 * 1024
"""Memory of all documents under way: ten completions of 10,000 parts, or a thousand small ones. One
more is told to come again later, which every SDK does."""

BYTE_COST: Final = 4
"""Text with one character beyond the first plane takes 4 bytes for each."""

ELEMENT_COST: Final = 100
"""Measured: 65 to 145 bytes with a short text."""


async def read_document(
    ctx: Context,
    root: tuple[str, ...],
    *,
    max_bytes: int = MAX_XML_BYTES,
    needs_digest: bool = False,
    object_checksums: bool = False,
) -> Element:
    """The XML document of a request, every promise about the body checked.

    `root`: names that the root element may have. `needs_digest`: Content-MD5 or a checksum must be
    there. `object_checksums`: the x-amz-checksum-* headers speak of an object, not of this
    document. What it takes in memory is held until the request is answered (`release`). Raises
    S3Error (MalformedXML, MissingRequestBodyError, SlowDown, ...).
    """
    body = open_body(
        ctx.request, ctx.identity, max_bytes=1 << 62, object_checksums=object_checksums
    )
    if body.length > max_bytes:
        raise S3Error("MalformedXML", f"The document is larger than {max_bytes} bytes.")
    if needs_digest and not body.has_digest:
        raise S3Error(
            "InvalidRequest",
            "Missing required header for this request: Content-MD5 OR x-amz-checksum-*",
        )
    if body.length == 0:
        raise S3Error("MissingRequestBodyError")
    reader = XmlReader(max_bytes)
    size = 0
    failure: XmlError | None = None
    digester = body.digester(md5=False, blake3=False)
    view = memoryview(bytearray(min(FEED_BYTES, body.length)))
    while count := await body.source.read_into(view):
        size += count
        if size > body.length:
            raise S3Error("InvalidRequest", "The body is longer than declared.")
        digester.update(view[:count])
        if failure is None:
            try:
                reader.feed(view[:count])
            except XmlError as error:
                failure = error
            _hold(ctx, BYTE_COST * size + ELEMENT_COST * reader.elements)
        await asyncio.sleep(0)
    body.verify(digester.finish(), size)
    try:
        if failure is not None:
            raise failure
        element = reader.finish()
    except XmlError as error:
        raise S3Error("MalformedXML", f"The XML you provided was refused: {error}.") from None
    if element.name not in root:
        raise S3Error("MalformedXML", f"The root element must be {' or '.join(root)}.")
    return element


def _hold(ctx: Context, cost_bytes: int) -> None:
    """Count what the document takes by now. Raises S3Error SlowDown."""
    service = ctx.service
    total = service.document_bytes + cost_bytes - ctx.document_bytes
    if total > MAX_DOCUMENTS_BYTES:
        raise S3Error(
            "SlowDown",
            "Too many large documents are being read at once. Send it again later.",
            headers=(("Retry-After", str(RETRY_AFTER_S)),),
        )
    service.document_bytes = total
    ctx.document_bytes = cost_bytes


def release(ctx: Context) -> None:
    """The request is answered. Idempotent."""
    ctx.service.document_bytes -= ctx.document_bytes
    ctx.document_bytes = 0
