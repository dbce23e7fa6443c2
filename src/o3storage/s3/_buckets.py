"""Operations on buckets: list, create, head, delete, location, versioning, and the answers for
settings that no bucket here has. Source: S3 API reference."""

from __future__ import annotations

import asyncio
from typing import Final

from o3storage.catalog import (
    CreateBucket,
    create_bucket,
    delete_bucket,
    head_version,
    list_buckets,
    set_versioning,
)
from o3storage.http import Response
from o3storage.s3._answers import empty, number_param, xml
from o3storage.s3._context import Context
from o3storage.s3._documents import read_document
from o3storage.s3._errors import S3Error
from o3storage.s3._listing import owner_xml
from o3storage.s3._names import check_new_bucket
from o3storage.s3._router import Handler
from o3storage.s3._times import iso_time
from o3storage.s3._xml import escape

MAX_BUCKETS: Final = 10_000
"""Buckets of one answer (AWS)."""

PAGE: Final = 250
"""Buckets read in one step of the event loop."""


async def list_all_buckets(ctx: Context) -> Response:
    params = ctx.params
    prefix = params.get("prefix", "")
    region = params.get("bucket-region")
    after = params.get("continuation-token", "")
    limit = number_param(params.get("max-buckets", str(MAX_BUCKETS)), "max-buckets", 1, MAX_BUCKETS)
    found: list[str] = []
    token: str | None = after
    while token is not None and len(found) < limit:
        page = await ctx.query(
            list_buckets(ctx.owner, prefix, token, min(PAGE, limit - len(found)))
        )
        token = page.next_after
        found += [
            f"<Bucket><Name>{escape(bucket.name)}</Name>"
            f"<CreationDate>{iso_time(bucket.created_ns)}</CreationDate>"
            f"<BucketRegion>{escape(bucket.region)}</BucketRegion></Bucket>"
            for bucket in page.buckets
            if region is None or bucket.region == region
        ]
        if token is not None:
            await asyncio.sleep(0)  # what is in memory is found without waiting
    content = f"{owner_xml('Owner', ctx.owner)}<Buckets>{''.join(found)}</Buckets>"
    if prefix:
        content += f"<Prefix>{escape(prefix)}</Prefix>"
    if token is not None:
        content += f"<ContinuationToken>{escape(token)}</ContinuationToken>"
    return xml("ListAllMyBucketsResult", content)


async def create_new_bucket(ctx: Context) -> Response:
    check_new_bucket(ctx.bucket_name)
    region = ctx.service.region
    if ctx.request.body.length != 0:
        root = await read_document(ctx, ("CreateBucketConfiguration",))
        for child in root.children:
            if child.name != "LocationConstraint":
                raise S3Error("NotImplemented", f"{child.name} of a new bucket is not implemented.")
        constraint = (root.child_text("LocationConstraint") or "").strip()
        if constraint not in ("", region):
            raise S3Error(
                "IllegalLocationConstraintException",
                f"The {constraint} location constraint is incompatible for the region specific "
                "endpoint this request was sent to.",
            )
    command = CreateBucket(ctx.bucket_name, ctx.owner, ctx.now_ns(), region)
    await ctx.drive(create_bucket(command))
    return empty(200, [("Location", f"/{ctx.bucket_name}")])


async def head_bucket(ctx: Context) -> Response:
    return Response(200, [("x-amz-bucket-region", ctx.bucket.region)], None, 0)


async def remove_bucket(ctx: Context) -> Response:
    await ctx.drive(delete_bucket(ctx.bucket_name, ctx.now_ns(), ctx.bucket.bucket_id))
    return empty(204)


async def get_bucket_location(ctx: Context) -> Response:
    region = ctx.bucket.region
    return xml("LocationConstraint", "" if region == "us-east-1" else escape(region))


async def get_bucket_versioning(ctx: Context) -> Response:
    status = ctx.bucket.versioning
    return xml("VersioningConfiguration", f"<Status>{status}</Status>" if status else "")


async def put_bucket_versioning(ctx: Context) -> Response:
    root = await read_document(ctx, ("VersioningConfiguration",))
    if (root.child_text("MfaDelete") or "Disabled").strip() != "Disabled":
        raise S3Error("NotImplemented", "MFA delete is not implemented.")
    status = (root.child_text("Status") or "").strip()
    if status not in ("Enabled", "Suspended"):
        raise S3Error("MalformedXML", "The Status must be Enabled or Suspended.")
    await ctx.drive(set_versioning(ctx.bucket_name, status, ctx.now_ns(), ctx.bucket.bucket_id))
    return empty(200)


def not_set(code: str) -> Handler:
    """The handler of a read of a setting that no bucket here has."""

    async def answer(ctx: Context) -> Response:
        raise S3Error(code, details=(("BucketName", ctx.bucket_name),))

    return answer


def fixed(root: str, content: str) -> Handler:
    """The handler of a read whose answer is the same for every bucket."""

    async def answer(_ctx: Context) -> Response:
        return xml(root, content)

    return answer


async def get_acl(ctx: Context) -> Response:
    owner = escape(ctx.bucket.owner)
    return xml(
        "AccessControlPolicy",
        f"{owner_xml('Owner', ctx.bucket.owner)}<AccessControlList><Grant>"
        '<Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:type="CanonicalUser"><ID>{owner}</ID><DisplayName>{owner}</DisplayName></Grantee>'
        "<Permission>FULL_CONTROL</Permission></Grant></AccessControlList>",
    )


async def get_object_acl(ctx: Context) -> Response:
    await ctx.query(head_version(ctx.bucket.bucket_id, ctx.key, ctx.version_param()))
    return await get_acl(ctx)


ENCRYPTION: Final = (
    "<Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm>"
    "</ApplyServerSideEncryptionByDefault><BucketKeyEnabled>false</BucketKeyEnabled></Rule>"
)
