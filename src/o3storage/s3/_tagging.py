"""Tags of buckets and objects. Source: S3 API reference."""

from __future__ import annotations

import json
from typing import Final

from o3storage.catalog import (
    BucketInfo,
    Command,
    SetTags,
    TagsResult,
    head_version,
)
from o3storage.http import Response
from o3storage.s3._answers import Header, empty, xml
from o3storage.s3._context import Context
from o3storage.s3._documents import read_document
from o3storage.s3._errors import S3Error
from o3storage.s3._headers import (
    MAX_BUCKET_TAGS,
    MAX_OBJECT_TAGS,
    check_tag_count,
    check_tags,
    version_header,
)
from o3storage.s3._xml import Element, escape

SETTING: Final = "tagging"


def parse_tagging(root: Element, limit: int) -> list[tuple[str, str]]:
    """The tags of a Tagging document. Raises S3Error."""
    tag_set = root.find("TagSet")
    if tag_set is None:
        raise S3Error("MalformedXML", "A Tagging needs a TagSet.")
    elements = tag_set.find_all("Tag")
    check_tag_count(len(elements), limit)
    tags = []
    for tag in elements:
        key, value = tag.child_text("Key"), tag.child_text("Value")
        if key is None or value is None:
            raise S3Error("MalformedXML", "A Tag needs a Key and a Value.")
        tags.append((key, value))
    return check_tags(tags, limit)


def tagging_xml(tags: list[tuple[str, str]]) -> str:
    inner = "".join(
        [
            f"<Tag><Key>{escape(key)}</Key><Value>{escape(value)}</Value></Tag>"
            for key, value in tags
        ]
    )
    return f"<TagSet>{inner}</TagSet>"


async def get_object_tagging(ctx: Context) -> Response:
    version = await ctx.query(head_version(ctx.bucket.bucket_id, ctx.key, ctx.version_param()))
    return xml("Tagging", tagging_xml(version.tags), version_header(ctx.bucket, version))


async def put_object_tagging(ctx: Context) -> Response:
    root = await read_document(ctx, ("Tagging",))
    return empty(200, await _set_tags(ctx, parse_tagging(root, MAX_OBJECT_TAGS)))


async def delete_object_tagging(ctx: Context) -> Response:
    return empty(204, await _set_tags(ctx, []))


async def _set_tags(ctx: Context, tags: list[tuple[str, str]]) -> list[Header]:
    version = ctx.version_param()

    def make(bucket: BucketInfo) -> Command:
        return SetTags(bucket.bucket_id, bucket.epoch, ctx.key, version, tags)

    result: TagsResult = await ctx.write(make)
    version_id = result.version_id
    return [] if version_id is None else [("x-amz-version-id", version_id)]


async def get_bucket_tagging(ctx: Context) -> Response:
    stored = ctx.bucket.settings.get(SETTING)
    if stored is None:
        raise S3Error("NoSuchTagSet", details=(("BucketName", ctx.bucket_name),))
    return xml("Tagging", tagging_xml([(key, value) for key, value in json.loads(stored)]))


async def put_bucket_tagging(ctx: Context) -> Response:
    root = await read_document(ctx, ("Tagging",))
    tags = parse_tagging(root, MAX_BUCKET_TAGS)
    value = json.dumps(tags, ensure_ascii=False, separators=(",", ":")).encode() if tags else None
    await ctx.set_bucket_setting(SETTING, value)
    return empty(204)


async def delete_bucket_tagging(ctx: Context) -> Response:
    await ctx.set_bucket_setting(SETTING, None)
    return empty(204)
