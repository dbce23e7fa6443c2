"""CompleteMultipartUpload: parts are judged in pages and named by a bitmap; nothing is copied.

Source: S3 API reference, CompleteMultipartUpload; user guide, "Checking object integrity".
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from o3storage._native import Digester
from o3storage.catalog import (
    BucketInfo,
    Checksum,
    ChosenParts,
    Command,
    CompleteUpload,
    NoSuchKey,
    PartInfo,
    PreconditionFailed,
    PutResult,
    UploadChanged,
    UploadInfo,
    get_upload,
    list_parts,
)
from o3storage.http import Response
from o3storage.s3._answers import Header, xml
from o3storage.s3._checksums import (
    ALGORITHMS,
    BY_ELEMENT,
    BY_HEADER,
    COMPOSITE,
    FULL_OBJECT,
    Algorithm,
    CrcCombiner,
    checksum_xml,
    decode_base64,
    digest_of,
    encode_value,
)
from o3storage.s3._conditions import unquote_etag, write_condition
from o3storage.s3._context import Context
from o3storage.s3._documents import read_document
from o3storage.s3._errors import S3Error
from o3storage.s3._multipart import MAX_PART_NUMBER, upload_param
from o3storage.s3._objects_put import check_condition, encryption_echo, lost_race
from o3storage.s3._uri import quote_path
from o3storage.s3._xml import MAX_COMPLETE_XML_BYTES, Element, escape, escape_bytes

MIN_PART_BYTES: Final = 5 * 1024 * 1024
"""Every part but the last (AWS: 5 MiB)."""

TRIES: Final = 5
"""How often parts are read again when they changed meanwhile."""

STEP_PARTS: Final = 250
"""Parts handled in one step of the event loop: about 5 ms."""


@dataclass(slots=True)
class _Wanted:
    """One part that the request names."""

    number: int
    etag: str
    checksum: tuple[Algorithm, bytes] | None


async def complete_multipart_upload(ctx: Context) -> Response:
    upload_id = upload_param(ctx)
    condition = write_condition(ctx.headers)
    root = await read_document(
        ctx,
        ("CompleteMultipartUpload",),
        max_bytes=MAX_COMPLETE_XML_BYTES,
        object_checksums=True,
    )
    wanted = await _parse_parts(root)
    for _ in range(TRIES):
        upload = await ctx.query(get_upload(ctx.bucket.bucket_id, ctx.key, upload_id))
        if (done := upload.completed) is not None:
            result = PutResult(
                done.order,
                done.is_null,
                done.versioned,
                True,
                done.etag,
                done.size_bytes,
                done.checksum,
            )
            return _answer(ctx, upload, result, len(wanted))
        if condition is not None:
            await check_condition(ctx, condition)
        chosen = await _choose(ctx, upload, wanted)
        _check_promises(ctx.headers, upload, chosen)

        def make(
            bucket: BucketInfo, upload: UploadInfo = upload, chosen: _Chosen = chosen
        ) -> Command:
            return CompleteUpload(
                bucket.bucket_id,
                bucket.epoch,
                ctx.key,
                upload_id,
                ctx.now_ns(),
                upload.changes,
                chosen.parts.count,
                chosen.parts.bitmap(),
                chosen.parts.index(),
                chosen.parts.size_bytes,
                chosen.etag,
                chosen.blake3,
                chosen.checksum,
                condition,
            )

        try:
            result = await ctx.write(make)
        except UploadChanged:
            continue
        except (PreconditionFailed, NoSuchKey) as refusal:
            raise lost_race(condition, refusal) from None
        return _answer(ctx, upload, result, len(wanted))
    raise S3Error("OperationAborted", "Parts of the upload are still changing.")


def _answer(ctx: Context, upload: UploadInfo, result: PutResult, parts: int) -> Response:
    headers: list[Header] = encryption_echo(upload.headers)
    if (version_id := result.version_id) is not None:
        headers.append(("x-amz-version-id", version_id))
    scheme = "https" if ctx.request.secure else "http"
    location = f"{scheme}://{ctx.request.host}/{ctx.bucket_name}/{quote_path(ctx.key)}"
    checksum = checksum_xml(result.checksum, _etag_parts(result.etag, parts))
    return xml(
        "CompleteMultipartUploadResult",
        f"<Location>{escape(location)}</Location><Bucket>{escape(ctx.bucket_name)}</Bucket>"
        f"<Key>{escape_bytes(ctx.key)}</Key><ETag>&quot;{result.etag}&quot;</ETag>{checksum}",
        headers,
    )


def _etag_parts(etag: str, default: int) -> int:
    """The number behind a multipart ETag."""
    count = etag.rpartition("-")[2]
    return int(count) if count.isdigit() else default


async def _parse_parts(root: Element) -> list[_Wanted]:
    elements = root.find_all("Part")
    if not 1 <= len(elements) <= MAX_PART_NUMBER:
        raise S3Error("MalformedXML", f"An upload is completed of 1 to {MAX_PART_NUMBER} parts.")
    wanted = []
    last = 0
    for position, element in enumerate(elements, 1):
        if position % STEP_PARTS == 0:
            await asyncio.sleep(0)
        number_text = (element.child_text("PartNumber") or "").strip()
        etag = element.child_text("ETag")
        if etag is None or not number_text.isascii() or not number_text.isdigit():
            raise S3Error("MalformedXML", "A Part needs a PartNumber and an ETag.")
        number = int(number_text) if len(number_text) <= 6 else MAX_PART_NUMBER + 1
        if not 1 <= number <= MAX_PART_NUMBER:
            raise S3Error(
                "InvalidArgument",
                f"PartNumber must be an integer between 1 and {MAX_PART_NUMBER}, inclusive",
            )
        if number <= last:
            raise S3Error("InvalidPartOrder")
        last = number
        wanted.append(_Wanted(number, unquote_etag(etag.strip()), _part_checksum(element)))
    return wanted


def _part_checksum(element: Element) -> tuple[Algorithm, bytes] | None:
    for child in element.children:
        algorithm = BY_ELEMENT.get(child.name)
        if algorithm is not None:
            value = decode_base64(child.text.strip())
            if value is None or len(value) != algorithm.size:
                raise S3Error("InvalidPart", f"The {child.name} of a part is not valid.")
            return algorithm, value
    return None


class _Chosen:
    """The sums over the parts of a completion, built in order."""

    __slots__ = (
        "_algorithm",
        "_blake3s",
        "_checksums",
        "_combiner",
        "_kind",
        "_md5s",
        "blake3",
        "checksum",
        "etag",
        "parts",
    )

    def __init__(self, upload: UploadInfo) -> None:
        self.parts = ChosenParts()
        self._md5s = Digester(md5=True, blake3=False)
        self._blake3s = Digester(md5=False, blake3=True)
        self._checksums = bytearray()
        self._algorithm: Algorithm | None = None
        if upload.checksum_algorithm:
            self._algorithm = ALGORITHMS[upload.checksum_algorithm]
        self._kind = upload.checksum_type
        self._combiner: CrcCombiner | None = None
        self.etag = ""
        self.blake3 = b""
        self.checksum: Checksum | None = None

    def add(self, part: PartInfo) -> None:
        if self.parts.count == 0:
            if self._algorithm is None and part.checksum is not None:
                # None was declared: what all parts have in common makes that of the whole.
                self._algorithm = ALGORITHMS[part.checksum.algorithm]
                self._kind = FULL_OBJECT if self._algorithm.is_crc else COMPOSITE
            if self._algorithm is not None and self._kind == FULL_OBJECT:
                self._combiner = CrcCombiner(self._algorithm)
        try:
            self.parts.add(part.number, part.size_bytes)
        except ValueError:
            raise S3Error("EntityTooLarge") from None
        self._md5s.update(bytes.fromhex(part.etag))
        self._blake3s.update(part.blake3)
        algorithm = self._algorithm
        if algorithm is None:
            return
        if part.checksum is None or part.checksum.algorithm != algorithm.name:
            self._algorithm = self._combiner = None
        elif self._combiner is not None:
            self._combiner.add(part.checksum.value, part.size_bytes)
        else:
            self._checksums += part.checksum.value

    def finish(self) -> None:
        self.etag = f"{self._md5s.finish()['md5'].hex()}-{self.parts.count}"
        self.blake3 = self._blake3s.finish()["blake3"]
        algorithm = self._algorithm
        if algorithm is None:
            return
        if self._combiner is not None:
            value = self._combiner.digest()
        else:
            value = digest_of(algorithm, bytes(self._checksums))
        self.checksum = Checksum(algorithm.name, self._kind, value)


async def _choose(ctx: Context, upload: UploadInfo, wanted: list[_Wanted]) -> _Chosen:
    """Match the request's parts with those uploaded. Raises S3Error."""
    chosen = _Chosen(upload)
    after = 0
    position = 0
    while position < len(wanted):
        page = await ctx.query(
            list_parts(ctx.bucket.bucket_id, ctx.key, upload.upload_id, after, STEP_PARTS)
        )
        for part in page.parts:
            if position == len(wanted):
                break
            want = wanted[position]
            if part.number < want.number:
                continue
            if part.number > want.number or part.etag != want.etag.lower():
                raise _invalid_part(want)
            _check_part_checksum(part, want)
            if part.size_bytes < MIN_PART_BYTES and position < len(wanted) - 1:
                raise S3Error(
                    "EntityTooSmall",
                    details=(
                        ("ProposedSize", str(part.size_bytes)),
                        ("MinSizeAllowed", str(MIN_PART_BYTES)),
                        ("PartNumber", str(part.number)),
                        ("ETag", part.etag),
                    ),
                )
            chosen.add(part)
            position += 1
        if position < len(wanted) and not page.truncated:
            raise _invalid_part(wanted[position])
        after = page.next_after
        await asyncio.sleep(0)
    chosen.finish()
    return chosen


def _check_part_checksum(part: PartInfo, want: _Wanted) -> None:
    if want.checksum is None:
        return
    algorithm, value = want.checksum
    if part.checksum is None or part.checksum.algorithm != algorithm.name:
        raise S3Error(
            "InvalidRequest",
            f"Part {part.number} was uploaded with another checksum algorithm than "
            f"{algorithm.name}.",
        )
    if part.checksum.value != value:
        raise _invalid_part(want)


def _invalid_part(want: _Wanted) -> S3Error:
    return S3Error("InvalidPart", details=(("PartNumber", str(want.number)), ("ETag", want.etag)))


def _check_promises(headers: dict[str, str], upload: UploadInfo, chosen: _Chosen) -> None:
    """What the request says of the whole object. Raises S3Error."""
    size = headers.get("x-amz-mp-object-size")
    if size is not None and size != str(chosen.parts.size_bytes):
        raise S3Error(
            "InvalidRequest",
            "The provided 'x-amz-mp-object-size' header value does not match what was computed.",
        )
    kind = headers.get("x-amz-checksum-type")
    have = chosen.checksum
    if kind is not None:
        declared = upload.checksum_type or (FULL_OBJECT if have is None else have.kind)
        if kind != declared:
            raise S3Error(
                "InvalidRequest",
                f"The upload was created using the {declared} checksum mode. The complete request "
                "must use the same checksum mode.",
            )
    for header, algorithm in BY_HEADER.items():
        text = headers.get(header)
        if text is None:
            continue
        if have is None or have.algorithm != algorithm.name:
            raise S3Error(
                "InvalidRequest", f"The upload was not made with {algorithm.name} checksums."
            )
        if text not in (
            encode_value(have.value, have.kind, chosen.parts.count),
            encode_value(have.value),
        ):
            raise S3Error(
                "BadDigest",
                f"The {algorithm.name} you specified did not match the calculated checksum.",
            )
