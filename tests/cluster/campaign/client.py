"""A process of clients: draws S3 operations, sends them by boto3, and writes down what it was told.

One JSON object a line: the call before it is sent, and its end. Instants are those of the machine's
monotonic clock, which all processes share. Retries are off: an operation is sent once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import threading
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
)

from . import nodes

NAMESPACE = b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
BUCKETS = ("plain", "versioned")
KEYS = 10
EPOCH_S = 10.0
"""So long a set of keys is used; then the next set, so that the history of a key stays short."""
PAUSE_S = 0.08
"""Between two operations of one client, about: the clients are not to be all that runs."""
CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 8.0
"""Longer than a node makes a client wait that it has to refuse."""
SIZES = (
    (62, 8, 2_000),
    (16, 2_000, 32_768),
    (10, 32_769, 90_000),
    (8, 262_140, 280_000),
    (4, 700_000, 2_500_000),
)
"""(weight, least, most) bytes of a body."""
WEIGHTS = {
    "put": 26,
    "put-absent": 10,
    "put-match": 10,
    "delete": 8,
    "get": 26,
    "head": 5,
    "list": 6,
    "versions": 3,
    "get-version": 7,
    "remove-version": 3,
    "multipart": 3,
}
VALUES_EACH = 10_000_000
"""Numbers of values of one client: none is used twice."""


class Worker(threading.Thread):
    """One client: one operation at a time."""

    def __init__(self, options: argparse.Namespace, number: int) -> None:
        super().__init__(name=f"c{number}", daemon=True)
        self.rng = random.Random(f"{options.seed}/client/{number}")
        self.begin_s, self.end_s = options.begin, options.end
        self.pause_s = options.pause
        self.first_value = number * VALUES_EACH
        self.values = 0
        self.calls = 0
        self.log = Path(f"{options.out}.{number}").open("w")  # noqa: SIM115 (closed by run)
        self.s3 = [
            boto3.client(
                "s3",
                endpoint_url=url,
                region_name="us-east-1",
                aws_access_key_id=nodes.KEY_ID,
                aws_secret_access_key=nodes.SECRET,
                config=Config(
                    retries={"total_max_attempts": 1},
                    connect_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=READ_TIMEOUT_S,
                    s3={"addressing_style": "path"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
            for url in options.urls.split(",")
        ]
        self.raw = b""
        for s3 in self.s3:
            s3.meta.events.register("before-parse.s3.ListObjectVersions", self.keep_raw)
        self.at = number % len(self.s3)
        self.known: dict[tuple[str, str], list[str]] = {}
        """ETags that were seen or written, by bucket and key."""
        self.versions: list[tuple[str, str, str, str]] = []
        """(bucket, key, version id, ETag) that were seen."""

    def run(self) -> None:
        choices, weights = list(WEIGHTS), list(WEIGHTS.values())
        while (now := time.monotonic()) < self.end_s:
            self.epoch = int((now - self.begin_s) / EPOCH_S)
            if self.rng.random() < 0.05:
                self.at = self.rng.randrange(len(self.s3))
            self.operate(self.rng.choices(choices, weights)[0])
            time.sleep(self.pause_s * self.rng.random() * 2)
        self.log.close()

    def operate(self, what: str) -> None:
        rng = self.rng
        bucket = rng.choice(BUCKETS)
        # In each second one key is hot, so that writes race.
        which = int(time.monotonic()) % KEYS if rng.random() < 0.5 else rng.randrange(KEYS)
        key = f"e{self.epoch:05d}/k{which}"
        if what in ("put", "put-absent", "put-match"):
            self.put(bucket, key, what[4:])
        elif what == "delete":
            self.call(
                "delete", bucket, key, {}, lambda s3: s3.delete_object(Bucket=bucket, Key=key)
            )
        elif what in ("get", "head"):
            self.get(bucket, key, what)
        elif what == "list":
            self.list(bucket)
        elif what == "versions":
            self.list_versions()
        elif what == "multipart":
            self.multipart(bucket, key)
        elif self.versions:
            bucket, key, version, etag = rng.choice(self.versions[-12:])
            if what == "get-version":
                self.get(bucket, key, "get", version, etag)
            else:
                self.call(
                    "remove-version",
                    bucket,
                    key,
                    {"etag": etag},
                    lambda s3: s3.delete_object(Bucket=bucket, Key=key, VersionId=version),
                )

    # --- one call

    def call(self, kind: str, bucket: str, key: str, fields: dict[str, Any], send: Any) -> Any:
        """Note the call, send it, note its end; the answer if it took effect."""
        self.calls += 1
        entry = {"n": self.calls, "kind": kind, "bucket": bucket, "key": key, "node": self.at}
        self.note({**entry, **fields, "call": time.monotonic()})
        answer, end = self.attempt(send)
        self.note({"n": self.calls, **end, "ret": time.monotonic()})
        if answer is not None and kind in ("put", "get", "head") and "VersionId" in answer:
            etag, version = answer["ETag"].strip('"'), answer["VersionId"]
            if version not in ("", "null"):
                self.versions.append((bucket, key, version, etag))
        return answer

    def attempt(self, send: Any) -> tuple[Any, dict[str, Any]]:
        """(answer or None, how it ended). A body is read to its end."""
        try:
            answer = send(self.s3[self.at])
            end: dict[str, Any] = {"end": "ok"}
            if answer is None:
                return None, {"end": "unknown"}
            if "ETag" in answer:
                end["seen"] = answer["ETag"].strip('"')
            if "VersionId" in answer:
                end["version"] = answer["VersionId"]
            if "Body" in answer:
                data = answer["Body"].read()
                md5 = hashlib.md5(data).digest()
                if answer["ETag"].endswith('-1"'):
                    end["md5"] = hashlib.md5(md5).hexdigest() + "-1"
                else:
                    end["md5"] = md5.hex()
            return answer, end
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            code = error.response["Error"].get("Code", "")
            if status == 503:
                self.elsewhere()
            return None, {"end": "error", "status": status, "code": code}
        except (EndpointConnectionError, ConnectTimeoutError):
            self.elsewhere()
            return None, {"end": "never"}
        except (BotoCoreError, HTTPClientError) as error:
            self.elsewhere()
            return None, {"end": "unknown", "why": type(error).__name__}

    def elsewhere(self) -> None:
        if self.rng.random() < 0.7:
            self.at = self.rng.randrange(len(self.s3))

    def note(self, entry: dict[str, Any]) -> None:
        self.log.write(json.dumps(entry) + "\n")

    # --- operations

    def value(self, size: int) -> tuple[int, bytes, str]:
        self.values += 1
        number = self.first_value + self.values
        body = (b"%d:" % number + self.rng.randbytes(size))[: max(size, 12)]
        return number, body, hashlib.md5(body).hexdigest()

    def put(self, bucket: str, key: str, condition: str) -> None:
        weights = [weight for weight, _, _ in SIZES]
        _, least, most = self.rng.choices(SIZES, weights)[0]
        number, body, etag = self.value(self.rng.randint(least, most))
        extra: dict[str, str] = {}
        fields: dict[str, Any] = {"value": number, "etag": etag, "condition": condition}
        known = self.known.setdefault((bucket, key), [])
        if condition == "absent":
            extra["IfNoneMatch"] = "*"
        elif condition == "match":
            if not known:
                return
            fields["expected"] = self.rng.choice(known[-3:])
            extra["IfMatch"] = f'"{fields["expected"]}"'
        known.append(etag)
        self.call(
            "put",
            bucket,
            key,
            fields,
            lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=body, **extra),
        )

    def multipart(self, bucket: str, key: str) -> None:
        number, body, md5 = self.value(self.rng.randint(8, 900_000))
        etag = hashlib.md5(bytes.fromhex(md5)).hexdigest() + "-1"
        where = {"Bucket": bucket, "Key": key}
        begun, _ = self.attempt(lambda s3: s3.create_multipart_upload(**where))
        if begun is None:
            return
        where["UploadId"] = begun["UploadId"]
        part, _ = self.attempt(lambda s3: s3.upload_part(**where, PartNumber=1, Body=body))
        if part is None:
            return
        time.sleep(self.rng.random())  # a fault may come in between
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        self.call(
            "put",
            bucket,
            key,
            {"value": number, "etag": etag, "condition": "", "multipart": True},
            lambda s3: s3.complete_multipart_upload(**where, MultipartUpload=parts),
        )

    def get(
        self, bucket: str, key: str, what: str, version: str | None = None, etag: str = ""
    ) -> None:
        where = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
        kind = "get-version" if version else what
        answer = self.call(
            kind,
            bucket,
            key,
            {"etag": etag} if version else {},
            lambda s3: s3.get_object(**where) if what == "get" else s3.head_object(**where),
        )
        if answer is not None:
            self.known.setdefault((bucket, key), []).append(answer["ETag"].strip('"'))

    def list(self, bucket: str) -> None:
        prefix, low, token = f"e{self.epoch:05d}/", "", ""
        size = self.rng.choice((2, 5, 1000))
        while True:
            extra = {"ContinuationToken": token} if token else {}
            answer = self.call(
                "list",
                bucket,
                prefix,
                {"low": low},
                lambda s3: self.page(s3, bucket, prefix, size, extra),
            )
            if answer is None or not answer.get("IsTruncated"):
                return
            token = answer["NextContinuationToken"]
            low = answer["Contents"][-1]["Key"]

    def page(self, s3: Any, bucket: str, prefix: str, size: int, extra: dict[str, str]) -> Any:
        answer = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=size, **extra)
        found = [(o["Key"], o["ETag"].strip('"')) for o in answer.get("Contents", ())]
        self.note({"n": self.calls, "page": found, "more": answer["IsTruncated"]})
        return answer

    def list_versions(self) -> None:
        prefix = f"e{self.epoch:05d}/"

        def send(s3: Any) -> Any:
            answer = s3.list_object_versions(Bucket="versioned", Prefix=prefix)
            if answer["IsTruncated"]:
                return None
            self.note({"n": self.calls, "versions": versions_in(self.raw)})
            return answer

        self.call("versions", "versioned", prefix, {}, send)

    def keep_raw(self, response_dict: dict[str, Any], **_: Any) -> None:
        """boto3 parts versions from markers, and their common order is lost: it is in the XML."""
        self.raw = response_dict["body"]


def versions_in(document: bytes) -> list[tuple[str, str]]:
    """(key, ETag, or "" for a delete marker) in the order of a listing of versions."""
    root = ElementTree.fromstring(document.replace(NAMESPACE, b""))
    return [
        (item.findtext("Key") or "", (item.findtext("ETag") or "").strip('"'))
        for item in root
        if item.tag in ("Version", "DeleteMarker")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("seed", "out", "urls"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("first", "count"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("begin", "end", "pause"):
        parser.add_argument(f"--{name}", type=float, required=True)
    options = parser.parse_args()
    workers = [Worker(options, options.first + n) for n in range(options.count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
