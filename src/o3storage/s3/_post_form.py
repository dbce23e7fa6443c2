"""PostObject: a browser's form upload, allowed by a signed policy.

Source: S3 API reference, "Browser-Based Uploads Using POST (AWS Signature Version 4)": form fields,
POST policy, conditions. Every field but the file, the policy, the signature and x-ignore-* must be
matched by a condition.
"""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from o3storage.http import Response
from o3storage.s3._answers import Header, empty, xml
from o3storage.s3._bodies import StoredBody, store_body
from o3storage.s3._checksums import BY_HEADER, decode_base64
from o3storage.s3._context import Context
from o3storage.s3._errors import S3Error
from o3storage.s3._form_data import FormFile
from o3storage.s3._headers import (
    MAX_OBJECT_TAGS,
    STORED,
    checksum_headers,
    stored_headers,
    user_metadata,
)
from o3storage.s3._names import check_key
from o3storage.s3._objects_put import commit_version, encryption_echo
from o3storage.s3._payload import MAX_PUT_BYTES, RequestBody, stated_checksum, stated_md5
from o3storage.s3._router import OBJECT_HEADERS, check_fixed_values
from o3storage.s3._tagging import parse_tagging
from o3storage.s3._times import parse_iso
from o3storage.s3._uri import quote_path
from o3storage.s3._xml import XmlError, escape, escape_bytes, parse

MAX_CONDITIONS: Final = 200
"""A policy is at most 20 KB anyway."""

_SIGNATURE_FIELDS: Final = frozenset({"policy", "x-amz-signature", "file"})

_RENAMED: Final = {"acl": "x-amz-acl"}
"""Form fields whose header has another name."""

_NOT_FIELDS: Final = frozenset({"x-amz-tagging"})
"""Headers of a PUT that no form has: its tags stand in the field `tagging`, as XML."""

_KNOWN: Final = frozenset(
    {
        "key",
        "tagging",
        "success_action_redirect",
        "redirect",
        "success_action_status",
        "bucket",
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "content-md5",
        *STORED,
    }
)


async def post_object(ctx: Context) -> Response:
    form = ctx.form
    if form is None:
        raise S3Error(
            "PreconditionFailed",
            "Bucket POST must be of the enclosure-type multipart/form-data",
        )
    fields = form.fields
    if "key" not in fields:
        raise S3Error("InvalidArgument", "Bucket POST must contain a field named 'key'.")
    low, high = 0, MAX_PUT_BYTES
    if not ctx.identity.anonymous:
        low, high = check_policy(fields, ctx.bucket_name, ctx.now_ns() // 1_000_000_000)
    key = fields["key"].encode()
    if not key:
        raise S3Error("UserKeyMustBeSpecified", "The key must not be empty.")
    check_key(key)
    ctx.key = key
    headers = _headers(fields)
    system = stored_headers(headers)
    metadata = user_metadata(headers)
    tags = _tags(fields)
    body = _body(form, headers, high)
    stored = await store_body(ctx, body)
    if stored.size_bytes < low:
        stored.discard()
        raise S3Error(
            "EntityTooSmall",
            details=(("ProposedSize", str(stored.size_bytes)), ("MinSizeAllowed", str(low))),
        )
    result = await commit_version(
        ctx, stored, system=system, metadata=metadata, tags=tags, condition=None
    )
    return _answer(ctx, stored, headers, result.version_id)


def _headers(fields: dict[str, str]) -> dict[str, str]:
    """The fields as the headers they stand for. Raises S3Error."""
    headers = {}
    for name, value in fields.items():
        name = _RENAMED.get(name, name)
        if name in headers:
            raise S3Error("InvalidArgument", f"The form field {name} is given twice.")
        # As a header would have arrived: latin-1 text of UTF-8 bytes.
        headers[name] = value.encode().decode("latin-1")
        if (
            name in _KNOWN
            or name in _SIGNATURE_FIELDS
            or name in OBJECT_HEADERS - _NOT_FIELDS
            or name in BY_HEADER
            or not name.startswith("x-amz-")
            or name.startswith("x-amz-meta-")
        ):
            continue
        raise S3Error("NotImplemented", f"The form field {name} is not implemented.")
    check_fixed_values(headers)
    return headers


def _tags(fields: dict[str, str]) -> list[tuple[str, str]]:
    document = fields.get("tagging")
    if document is None:
        return []
    try:
        root = parse(document.encode())
    except XmlError:
        raise S3Error("MalformedXML") from None
    return parse_tagging(root, MAX_OBJECT_TAGS)


def _body(form: FormFile, headers: dict[str, str], high: int) -> RequestBody:
    algorithm, value = stated_checksum(headers)
    return RequestBody(
        form,
        min(high, MAX_PUT_BYTES),
        exact=False,
        md5=stated_md5(headers),
        sha256=None,
        pending=None,
        algorithm=algorithm,
        value=value,
    )


def _answer(
    ctx: Context, stored: StoredBody, headers: dict[str, str], version_id: str | None
) -> Response:
    scheme = "https" if ctx.request.secure else "http"
    location = f"{scheme}://{ctx.request.host}/{ctx.bucket_name}/{quote_path(ctx.key)}"
    answer: list[Header] = [
        ("ETag", f'"{stored.etag}"'),
        *checksum_headers(stored.checksum),
        *encryption_echo(headers),
    ]
    if version_id is not None:
        answer.append(("x-amz-version-id", version_id))
    fields = ctx.form.fields if ctx.form is not None else {}
    redirect = fields.get("success_action_redirect") or fields.get("redirect")
    if redirect:
        target = _redirect(redirect, ctx.bucket_name, ctx.key, stored.etag)
        if target is not None:
            return empty(303, [("Location", target), *answer])
    answer.append(("Location", location))
    if fields.get("success_action_status") == "201":
        return xml(
            "PostResponse",
            f"<Location>{escape(location)}</Location><Bucket>{escape(ctx.bucket_name)}</Bucket>"
            f"<Key>{escape_bytes(ctx.key)}</Key><ETag>&quot;{stored.etag}&quot;</ETag>",
            answer,
            status=201,
        )
    return empty(200 if fields.get("success_action_status") == "200" else 204, answer)


def _redirect(url: str, bucket: str, key: bytes, etag: str) -> str | None:
    """The URL with bucket, key and etag added; None for one that cannot be followed."""
    if not url.isascii() or not url.isprintable():
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return None
    query = [
        *parse_qsl(parts.query, keep_blank_values=True),
        ("bucket", bucket),
        ("key", key.decode()),
        ("etag", f'"{etag}"'),
    ]
    return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), parts.fragment))


# --- the policy


def check_policy(fields: dict[str, str], bucket: str, now_s: int) -> tuple[int, int]:
    """Whether the form keeps to its policy, whose signature was verified before.

    Returns the size range of the file. Raises S3Error AccessDenied, InvalidPolicyDocument.
    """
    policy = _load(fields["policy"])
    expiration = policy.get("expiration")
    expires_s = parse_iso(expiration) if isinstance(expiration, str) else None
    if expires_s is None:
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid 'expiration' value.")
    if now_s > expires_s:
        raise _denied("Policy expired.")
    conditions = policy.get("conditions")
    if not isinstance(conditions, list) or len(conditions) > MAX_CONDITIONS:
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid 'conditions' value.")
    values = {**fields, "bucket": bucket}
    matched: set[str] = set()
    low, high = 0, MAX_PUT_BYTES
    for condition in conditions:
        for operator, name, operand in _read_condition(condition):
            if operator == "content-length-range":
                low, high = max(low, name), min(high, operand)
                continue
            _check_condition(operator, name, operand, values, condition)
            matched.add(name)
    # The bucket counts as a field (as with AWS): a policy that names none would be good for all.
    extra = [
        name
        for name in values
        if name not in matched
        and name not in _SIGNATURE_FIELDS
        and not name.startswith("x-ignore-")
    ]
    if extra:
        raise _denied(f"Extra input fields: {', '.join(sorted(extra))}")
    return low, high


def _load(text: str) -> dict[str, Any]:
    raw = decode_base64("".join(text.split()))
    try:
        policy = json.loads(raw or b"")
    except (ValueError, RecursionError):
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid JSON.") from None
    if not isinstance(policy, dict):
        raise S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid JSON.")
    return policy


def _read_condition(condition: Any) -> list[tuple[str, Any, Any]]:
    """(operator, field, operand) of one condition. Raises S3Error InvalidPolicyDocument."""
    invalid = S3Error("InvalidPolicyDocument", "Invalid Policy: Invalid condition.")
    if isinstance(condition, dict):
        if not all(isinstance(value, str) for value in condition.values()):
            raise invalid
        return [("eq", name.lower(), value) for name, value in condition.items()]
    if not isinstance(condition, list) or len(condition) != 3:
        raise invalid
    operator, name, operand = condition
    if not isinstance(operator, str):
        raise invalid
    operator = operator.lower()
    if operator == "content-length-range":
        low, high = _size(name), _size(operand)
        if low is None or high is None or low > high:
            raise invalid
        return [(operator, low, high)]
    if operator not in ("eq", "starts-with"):
        raise invalid
    if not isinstance(name, str) or not isinstance(operand, str) or not name.startswith("$"):
        raise invalid
    return [(operator, name[1:].lower(), operand)]


def _size(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


def _check_condition(
    operator: str, name: str, operand: str, values: dict[str, str], condition: Any
) -> None:
    value = values.get(name, "")
    if operator == "eq":
        holds = value == operand
    elif name == "content-type" and "," in value:
        # A list of types, each of which must begin so (AWS).
        holds = all(item.strip().startswith(operand) for item in value.split(","))
    else:
        holds = value.startswith(operand)
    if not holds:
        raise _denied(f"Policy Condition failed: {json.dumps(condition)}")


def _denied(reason: str) -> S3Error:
    return S3Error("AccessDenied", f"Invalid according to Policy: {reason}")
