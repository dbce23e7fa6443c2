"""Buckets: create, head, delete, list, location, versioning, tags, CORS, and what is not set."""

from __future__ import annotations

import pytest

from o3storage.catalog import (
    BeginDeleteBucket,
    CreateBucket,
    RevertDeleteBucket,
    SyncBucket,
    create_bucket,
    delete_bucket,
    get_bucket,
    set_versioning,
)
from o3storage.s3 import _buckets
from tests.s3.harness import OTHER_OWNER, Store
from tests.s3.support import OWNER


@pytest.mark.s3(
    op=["CreateBucket", "HeadBucket", "DeleteBucket"],
    headers=["location", "x-amz-bucket-region"],
    errors=["NoSuchBucket"],
)
def test_create_head_delete(store: Store) -> None:
    missing = store.head("/bucket")
    assert (missing.status, missing.body) == (404, b"")
    assert store.get("/bucket").code == "NoSuchBucket"
    assert store.get("/bucket").text("BucketName") == "bucket"
    created = store.put("/bucket")
    assert (created.status, created.headers["location"]) == (200, "/bucket")
    assert store.head("/bucket").headers["x-amz-bucket-region"] == "us-east-1"
    assert store.delete("/bucket").status == 204
    assert store.head("/bucket").status == 404
    assert store.delete("/bucket").code == "NoSuchBucket"


@pytest.mark.s3(op="CreateBucket", errors=["BucketAlreadyExists"])
def test_creating_again(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"x")
    assert store.put("/bucket").status == 200
    assert store.objects() == ["k"]
    taken = store.put("/bucket", other=True)
    assert (taken.status, taken.code) == (409, "BucketAlreadyExists")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<CreateBucketConfiguration/>", ""),
        (
            b"<CreateBucketConfiguration><LocationConstraint>us-east-1</LocationConstraint>"
            b"</CreateBucketConfiguration>",
            "",
        ),
        (
            b"<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint>"
            b"</CreateBucketConfiguration>",
            "IllegalLocationConstraintException",
        ),
        (
            b"<CreateBucketConfiguration><Tags/></CreateBucketConfiguration>",
            "NotImplemented",
        ),
        (b"<Other/>", "MalformedXML"),
        (b"not xml", "MalformedXML"),
    ],
)
@pytest.mark.s3(op="CreateBucket", errors=["IllegalLocationConstraintException", "MalformedXML"])
def test_create_bucket_configuration(store: Store, body: bytes, code: str) -> None:
    assert store.put("/bucket", body).code == code
    assert store.head("/bucket").status == (404 if code else 200)


@pytest.mark.s3(
    op="CreateBucket",
    headers=["x-amz-bucket-object-lock-enabled", "x-amz-object-ownership", "x-amz-acl"],
    errors=["NotImplemented"],
)
def test_create_bucket_headers(store: Store) -> None:
    for name, value in (
        ("x-amz-bucket-object-lock-enabled", "true"),
        ("x-amz-object-ownership", "ObjectWriter"),
        ("x-amz-acl", "public-read"),
    ):
        assert store.put("/bucket", b"", {name: value}).code == "NotImplemented"
    assert store.head("/bucket").status == 404
    accepted = {
        "x-amz-bucket-object-lock-enabled": "false",
        "x-amz-object-ownership": "BucketOwnerEnforced",
        "x-amz-acl": "private",
    }
    assert store.put("/bucket", b"", accepted).status == 200


@pytest.mark.s3(op="DeleteBucket", errors=["BucketNotEmpty"])
def test_a_bucket_with_versions_or_markers_is_not_empty(store: Store) -> None:
    store.bucket(versioning="Enabled")
    version = store.put("/bucket/k", b"x").headers["x-amz-version-id"]
    assert store.delete("/bucket").code == "BucketNotEmpty"
    marker = store.delete("/bucket/k").headers["x-amz-version-id"]
    store.delete(f"/bucket/k?versionId={version}")
    refused = store.delete("/bucket")
    assert (refused.status, refused.code) == (409, "BucketNotEmpty")
    assert store.put("/bucket/other", b"still writable").status == 200
    store.delete(
        f"/bucket/other?versionId={store.head('/bucket/other').headers['x-amz-version-id']}"
    )
    store.delete(f"/bucket/k?versionId={marker}")
    assert store.delete("/bucket").status == 204


@pytest.mark.s3(op="DeleteBucket")
def test_a_bucket_with_open_uploads_only_is_deleted(store: Store) -> None:
    store.bucket()
    upload = store.upload("/bucket/k")
    store.put(f"/bucket/k?partNumber=1&uploadId={upload}", b"x")
    assert store.delete("/bucket").status == 204
    assert store.put("/bucket").status == 200
    assert store.get("/bucket?uploads").texts("Upload/Key") == []


@pytest.mark.s3(
    op="ListBuckets",
    headers=["?prefix", "?max-buckets", "?continuation-token", "?bucket-region"],
    errors=["InvalidArgument"],
)
def test_list_buckets(store: Store) -> None:
    for name in ("beta", "alpha", "gamma", "album"):
        store.bucket(name)
    assert store.put("/delta", other=True).status == 200
    listed = store.get("/")
    assert listed.texts("Buckets/Bucket/Name") == ["album", "alpha", "beta", "gamma"]
    assert listed.text("Owner/ID") == OWNER
    assert listed.text("Buckets/Bucket/CreationDate").endswith("Z")
    assert store.get("/", other=True).texts("Buckets/Bucket/Name") == ["delta"]
    assert store.get("/", other=True).text("Owner/ID") == OTHER_OWNER
    assert store.get("/?prefix=al").texts("Buckets/Bucket/Name") == ["album", "alpha"]
    page = store.get("/?max-buckets=3")
    assert page.texts("Buckets/Bucket/Name") == ["album", "alpha", "beta"]
    token = page.text("ContinuationToken")
    rest = store.get(f"/?max-buckets=3&continuation-token={token}")
    assert rest.texts("Buckets/Bucket/Name") == ["gamma"]
    assert rest.text("ContinuationToken") is None
    assert store.get("/?bucket-region=eu-west-1").texts("Buckets/Bucket/Name") == []
    for bad in ("0", "10001", "x"):
        assert store.get(f"/?max-buckets={bad}").code == "InvalidArgument"


def test_many_buckets_are_listed_in_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other requests wait for is one page, not all of them."""
    for n in range(12):
        store.bucket(f"bucket-{n:02d}")
    loop = store.runner.get_loop()

    def turns() -> int:
        count = 0

        def turn() -> None:
            nonlocal count, handle
            count += 1
            handle = loop.call_soon(turn)

        handle = loop.call_soon(turn)
        listed = store.get("/")
        handle.cancel()
        assert len(listed.texts("Buckets/Bucket/Name")) == 12
        return count

    in_one = turns()
    monkeypatch.setattr(_buckets, "PAGE", 3)
    assert turns() == in_one + 3


@pytest.mark.s3(op="GetBucketLocation")
def test_location() -> None:
    store = Store()
    store.bucket()
    assert (store.get("/bucket?location").xml.text or "") == ""
    store.close()


@pytest.mark.s3(
    op=["GetBucketVersioning", "PutBucketVersioning"], errors=["MalformedXML", "NotImplemented"]
)
def test_versioning_status(store: Store) -> None:
    store.bucket()
    assert store.get("/bucket?versioning").text("Status") is None
    for status in ("Enabled", "Suspended", "Enabled"):
        store.versioning("bucket", status)
        assert store.get("/bucket?versioning").text("Status") == status
    for body, code in (
        (b"<VersioningConfiguration/>", "MalformedXML"),
        (b"<VersioningConfiguration><Status>On</Status></VersioningConfiguration>", "MalformedXML"),
        (
            b"<VersioningConfiguration><Status>Enabled</Status><MfaDelete>Enabled</MfaDelete>"
            b"</VersioningConfiguration>",
            "NotImplemented",
        ),
    ):
        assert store.put("/bucket?versioning", body).code == code


@pytest.mark.s3(op="PutBucketVersioning", errors=["MissingRequestBodyError"])
def test_a_document_that_is_needed_and_not_there(store: Store) -> None:
    store.bucket()
    for sub in ("versioning", "tagging", "cors"):
        answer = store.put(f"/bucket?{sub}")
        assert (answer.status, answer.code) == (400, "MissingRequestBodyError")


def tagging(*tags: tuple[str, str]) -> bytes:
    inner = "".join(f"<Tag><Key>{k}</Key><Value>{v}</Value></Tag>" for k, v in tags)
    return f"<Tagging><TagSet>{inner}</TagSet></Tagging>".encode()


@pytest.mark.s3(
    op=["GetBucketTagging", "PutBucketTagging", "DeleteBucketTagging"],
    errors=["NoSuchTagSet", "BadRequest", "InvalidTag", "MalformedXML"],
)
def test_bucket_tags(store: Store) -> None:
    store.bucket()
    assert store.get("/bucket?tagging").code == "NoSuchTagSet"
    assert store.put("/bucket?tagging", tagging(("team", "a b"), ("é", ""))).status == 204
    shown = store.get("/bucket?tagging")
    assert shown.texts("TagSet/Tag/Key") == ["team", "é"]
    assert shown.texts("TagSet/Tag/Value") == ["a b", ""]
    fifty = [(f"k{n}", "v") for n in range(50)]
    assert store.put("/bucket?tagging", tagging(*fifty)).status == 204
    assert store.put("/bucket?tagging", tagging(*fifty, ("more", "v"))).code == "BadRequest"
    # As long as they may be. A character beyond the first plane counts as two.
    wide = chr(0x1D400)
    for letter in ("\u6f22", wide):
        units = len(letter.encode("utf-16-le")) // 2
        largest = [
            (f"{n:02d}{letter * (126 // units)}", letter * (256 // units)) for n in range(50)
        ]
        assert store.put("/bucket?tagging", tagging(*largest)).status == 204
    for tags in ([("a", "1"), ("a", "2")], [("", "1")], [("k" * 129, "v")], [("k", "v" * 257)],
                 [("aws:x", "1")], [("a!", "1")], [("k", wide * 129)]):  # fmt: skip
        assert store.put("/bucket?tagging", tagging(*tags)).code == "InvalidTag", tags
    for body in (b"<Tagging/>", b"<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>"):
        assert store.put("/bucket?tagging", body).code == "MalformedXML"
    assert len(store.get("/bucket?tagging").texts("TagSet/Tag/Key")) == 50
    assert store.delete("/bucket?tagging").status == 204
    assert store.get("/bucket?tagging").code == "NoSuchTagSet"


@pytest.mark.parametrize(
    ("sub", "code"),
    [
        ("policy", "NoSuchBucketPolicy"),
        ("policyStatus", "NoSuchBucketPolicy"),
        ("lifecycle", "NoSuchLifecycleConfiguration"),
        ("website", "NoSuchWebsiteConfiguration"),
        ("object-lock", "ObjectLockConfigurationNotFoundError"),
        ("publicAccessBlock", "NoSuchPublicAccessBlockConfiguration"),
        ("ownershipControls", "OwnershipControlsNotFoundError"),
        ("replication", "ReplicationConfigurationNotFoundError"),
        ("cors", "NoSuchCORSConfiguration"),
        ("tagging", "NoSuchTagSet"),
    ],
)
@pytest.mark.s3(
    op=[
        "GetBucketPolicy",
        "GetBucketPolicyStatus",
        "GetBucketLifecycleConfiguration",
        "GetBucketWebsite",
        "GetObjectLockConfiguration",
        "GetPublicAccessBlock",
        "GetBucketOwnershipControls",
        "GetBucketReplication",
        "GetBucketCors",
        "GetBucketTagging",
    ],
    errors=[
        "NoSuchBucketPolicy",
        "NoSuchLifecycleConfiguration",
        "NoSuchWebsiteConfiguration",
        "ObjectLockConfigurationNotFoundError",
        "NoSuchPublicAccessBlockConfiguration",
        "OwnershipControlsNotFoundError",
        "ReplicationConfigurationNotFoundError",
        "NoSuchCORSConfiguration",
        "NoSuchTagSet",
    ],
)
def test_reads_of_what_is_not_set(store: Store, sub: str, code: str) -> None:
    store.bucket()
    answer = store.get(f"/bucket?{sub}")
    assert (answer.status, answer.code) == (404, code)
    assert store.get(f"/no-such?{sub}").code == "NoSuchBucket"
    assert store.get(f"/bucket?{sub}", other=True).code == "AccessDenied"


@pytest.mark.s3(
    op=[
        "GetBucketAcl",
        "GetObjectAcl",
        "GetBucketEncryption",
        "GetBucketRequestPayment",
        "GetBucketLogging",
        "GetBucketNotificationConfiguration",
        "GetBucketAccelerateConfiguration",
    ]
)
def test_reads_with_a_fixed_answer(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"x")
    for target in ("/bucket?acl", "/bucket/k?acl"):
        acl = store.get(target)
        assert acl.text("Owner/ID") == OWNER
        assert acl.texts("AccessControlList/Grant/Permission") == ["FULL_CONTROL"]
        assert acl.texts("AccessControlList/Grant/Grantee/ID") == [OWNER]
    assert store.get("/bucket/missing?acl").code == "NoSuchKey"
    algorithm = "Rule/ApplyServerSideEncryptionByDefault/SSEAlgorithm"
    assert store.get("/bucket?encryption").text(algorithm) == "AES256"
    assert store.get("/bucket?requestPayment").text("Payer") == "BucketOwner"
    for sub in ("logging", "notification", "accelerate"):
        answer = store.get(f"/bucket?{sub}")
        assert answer.status == 200 and len(answer.xml) == 0


# --- CORS


RULES = b"""<CORSConfiguration>
  <CORSRule><ID>one</ID><AllowedOrigin>https://*.example.org</AllowedOrigin>
    <AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod>
    <AllowedHeader>x-amz-*</AllowedHeader><AllowedHeader>content-type</AllowedHeader>
    <ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>60</MaxAgeSeconds></CORSRule>
  <CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>HEAD</AllowedMethod></CORSRule>
</CORSConfiguration>"""


@pytest.mark.s3(op=["GetBucketCors", "PutBucketCors", "DeleteBucketCors"])
def test_cors_configuration_is_kept(store: Store) -> None:
    store.bucket()
    assert store.put("/bucket?cors", RULES).status == 200
    shown = store.get("/bucket?cors")
    assert shown.texts("CORSRule/AllowedOrigin") == ["https://*.example.org", "*"]
    assert shown.texts("CORSRule/AllowedMethod") == ["GET", "PUT", "HEAD"]
    assert shown.texts("CORSRule/AllowedHeader") == ["x-amz-*", "content-type"]
    assert shown.texts("CORSRule/ExposeHeader") == ["ETag"]
    assert shown.texts("CORSRule/MaxAgeSeconds") == ["60"]
    assert shown.texts("CORSRule/ID") == ["one"]
    assert store.delete("/bucket?cors").status == 204
    assert store.get("/bucket?cors").code == "NoSuchCORSConfiguration"


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("", "MalformedXML"),
        ("<AllowedOrigin>*</AllowedOrigin>", "MalformedXML"),
        ("<AllowedMethod>GET</AllowedMethod>", "MalformedXML"),
        ("<AllowedOrigin>*</AllowedOrigin><AllowedMethod>PATCH</AllowedMethod>", "InvalidRequest"),
        ("<AllowedOrigin>a*b*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>", "InvalidRequest"),
        (
            "<AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
            "<ExposeHeader>x-*</ExposeHeader>",
            "InvalidRequest",
        ),
        (
            "<AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
            "<MaxAgeSeconds>-1</MaxAgeSeconds>",
            "MalformedXML",
        ),
    ],
)
@pytest.mark.s3(op="PutBucketCors", errors=["MalformedXML", "InvalidRequest"])
def test_cors_rules_that_are_refused(store: Store, rule: str, code: str) -> None:
    store.bucket()
    document = f"<CORSConfiguration><CORSRule>{rule}</CORSRule></CORSConfiguration>".encode()
    assert store.put("/bucket?cors", document).code == code
    many = "<CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule>"
    document = f"<CORSConfiguration>{many * 101}</CORSConfiguration>".encode()
    assert store.put("/bucket?cors", document).code == "MalformedXML"


def options(store: Store, target: str, origin: str, method: str, headers: str = "") -> object:
    sent = {"host": "h", "access-control-request-method": method}
    if origin:
        sent["origin"] = origin
    if headers:
        sent["access-control-request-headers"] = headers
    return store.call("OPTIONS", target, sign=False, headers=sent)


@pytest.mark.s3(
    op="CORSPreflight",
    headers=[
        "origin",
        "access-control-request-method",
        "access-control-request-headers",
        "access-control-allow-origin",
        "access-control-allow-methods",
        "access-control-allow-headers",
        "access-control-max-age",
        "access-control-allow-credentials",
        "vary",
    ],
    errors=["AccessForbidden", "BadRequest"],
)
def test_preflight(store: Store) -> None:
    store.bucket()
    origin = "https://app.example.org"
    refused = options(store, "/bucket/k", origin, "PUT")
    assert (refused.status, refused.code) == (403, "AccessForbidden")
    assert not [name for name in refused.headers if name.startswith("access-control")]
    store.put("/bucket?cors", RULES)
    allowed = options(store, "/bucket/k", origin, "PUT", "X-Amz-Date, content-type")
    assert allowed.status == 200
    assert allowed.headers["access-control-allow-origin"] == origin
    assert allowed.headers["access-control-allow-methods"] == "GET, PUT"
    assert allowed.headers["access-control-allow-headers"] == "x-amz-date, content-type"
    assert allowed.headers["access-control-max-age"] == "60"
    assert allowed.headers["access-control-allow-credentials"] == "true"
    assert "Origin" in allowed.headers["vary"]
    assert options(store, "/bucket/k", origin, "DELETE").code == "AccessForbidden"
    assert options(store, "/bucket/k", origin, "PUT", "x-other").code == "AccessForbidden"
    assert options(store, "/bucket/k", "https://evil.org", "PUT").code == "AccessForbidden"
    anyone = options(store, "/bucket/k", "https://evil.org", "HEAD")
    assert anyone.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in anyone.headers
    assert options(store, "/no-such/k", origin, "PUT").code == "AccessForbidden"
    assert options(store, "/bucket/k", "", "PUT").code == "BadRequest"
    assert options(store, "/bucket/k", origin, "").code == "BadRequest"
    most = ",".join(["x-amz-date"] * 100)
    assert options(store, "/bucket/k", origin, "PUT", most).status == 200
    assert options(store, "/bucket/k", origin, "PUT", f"{most},a").code == "BadRequest"


@pytest.mark.s3(op="GetObject", headers=["origin", "access-control-expose-headers", "vary"])
def test_cve_2026_46685_an_origin_is_never_reflected_without_a_bucket_rule(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"x")
    for answer in (
        store.get("/bucket/k", {"origin": "https://evil.org"}),
        store.get("/bucket/missing", {"origin": "https://evil.org"}),
        store.get("/", {"origin": "https://evil.org"}),
        store.get("/bucket/k", {"origin": "null"}),
    ):
        assert not [n for n in answer.headers if n.startswith("access-control")]
    store.put("/bucket?cors", RULES)
    got = store.get("/bucket/k", {"origin": "https://a.example.org"})
    assert got.headers["access-control-allow-origin"] == "https://a.example.org"
    assert got.headers["access-control-expose-headers"] == "ETag"
    missing = store.get("/bucket/missing", {"origin": "https://a.example.org"})
    assert missing.headers["access-control-allow-origin"] == "https://a.example.org"
    for origin in ("https://evil.org", "https://a.example.org.evil.org", "null"):
        answer = store.get("/bucket/k", {"origin": origin})
        assert "access-control-allow-origin" not in answer.headers


# --- settings that move under a write


@pytest.mark.s3(op="PutObject")
def test_a_write_made_with_stale_settings_is_made_anew(store: Store) -> None:
    store.bucket()

    def enable(_command: object) -> None:
        store.node.drive_now(set_versioning("bucket", "Enabled", store.clock.wall_ns()))

    store.node.before = [enable]
    answer = store.put("/bucket/k", b"x")
    assert answer.status == 200
    assert answer.headers["x-amz-version-id"] != "null"


def fence(store: Store) -> None:
    """As the first steps of a deletion leave the bucket."""
    begun = store.node.submit_now(BeginDeleteBucket("bucket"))
    now_ns = store.clock.wall_ns()
    store.node.submit_now(SyncBucket(begun.bucket_id, begun.epoch, "", "fenced", now_ns))


def revert(store: Store) -> None:
    """The deletion ends with the bucket as it was."""
    begun = store.node.rows.query(get_bucket("bucket"))
    back = store.node.submit_now(RevertDeleteBucket("bucket", begun.bucket_id, begun.epoch))
    now_ns = store.clock.wall_ns()
    store.node.submit_now(SyncBucket(back.bucket_id, back.epoch, "", "active", now_ns))


@pytest.mark.s3(op="PutObject")
def test_a_write_that_meets_a_fence_waits_for_the_decision(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("o3storage.s3._context.FENCE_POLL_S", 0)
    store.bucket()
    looked = store.node.query_now
    looks = []

    def look(query: object) -> object:
        found = looked(query)
        looks.append(getattr(found, "deleting", None))
        if looks.count(True) == 3:
            revert(store)
        return found

    def meet(_command: object) -> None:
        fence(store)
        monkeypatch.setattr(store.node, "query_now", look)

    store.node.before = [meet]
    assert store.put("/bucket/k", b"x").status == 200
    assert looks.count(True) == 3
    monkeypatch.setattr(store.node, "query_now", looked)
    assert store.objects() == ["k"]


@pytest.mark.s3(op="PutObject", errors=["NoSuchBucket"])
def test_a_body_for_a_bucket_that_went_is_not_given_to_its_successor(store: Store) -> None:
    store.bucket()

    def replace(_command: object) -> None:
        store.node.drive_now(delete_bucket("bucket", store.clock.wall_ns()))
        store.node.drive_now(create_bucket(CreateBucket("bucket", OWNER, store.clock.wall_ns())))

    store.node.before = [replace]
    gone = store.put("/bucket/k", b"x")
    assert (gone.status, gone.code) == (404, "NoSuchBucket")
    assert store.objects() == []
    assert store.node.streams == {}


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PUT", "/bucket?cors", RULES),
        ("DELETE", "/bucket?cors", b""),
        ("PUT", "/bucket?tagging", tagging(("a", "b"))),
        ("DELETE", "/bucket?tagging", b""),
        (
            *("PUT", "/bucket?versioning"),
            b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
        ),
        ("DELETE", "/bucket", b""),
    ],
)
@pytest.mark.s3(
    op=[
        *("PutBucketCors", "DeleteBucketCors", "PutBucketTagging", "DeleteBucketTagging"),
        *("PutBucketVersioning", "DeleteBucket"),
    ],
    errors=["NoSuchBucket"],
)
def test_a_change_of_a_bucket_that_went_is_not_made_to_anothers_of_its_name(
    store: Store, method: str, target: str, body: bytes
) -> None:
    """Who sends a document slowly may delete the bucket meanwhile, and somebody else take the
    name."""
    store.bucket()

    def replace(_command: object) -> None:
        now_ns = store.clock.wall_ns()
        store.node.drive_now(delete_bucket("bucket", now_ns))
        store.node.drive_now(create_bucket(CreateBucket("bucket", OTHER_OWNER, now_ns)))

    store.node.before = [replace]
    gone = store.call(method, target, body)
    assert (gone.status, gone.code) == (404, "NoSuchBucket")
    found = store.node.rows.query(get_bucket("bucket"))
    assert (found.owner, found.versioning, found.settings) == (OTHER_OWNER, "", {})
    assert not found.deleting


@pytest.mark.s3(op="CreateBucket", errors=["OperationAborted", "ServiceUnavailable"])
def test_while_a_bucket_is_being_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.bucket()
    fence(store)
    busy = store.put("/bucket")
    assert (busy.status, busy.code) == (409, "OperationAborted")
    monkeypatch.setattr("o3storage.s3._context.FENCE_WAIT_S", 0)
    monkeypatch.setattr("o3storage.s3._context.FENCE_POLL_S", 0)
    fenced = store.put("/bucket/k", b"x")
    assert (fenced.status, fenced.code) == (503, "ServiceUnavailable")
    assert fenced.headers["retry-after"] == "1"
    assert store.node.streams == {}
