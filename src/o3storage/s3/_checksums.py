"""The additional checksums of S3: names, headers, and how those of parts make that of the whole.

Source: Amazon S3 user guide, "Checking object integrity". Values are base64 of the big-endian
bytes. A multipart object has either the checksum of all its bytes (FULL_OBJECT, CRCs only) or that
of its parts' checksums, with -N behind it (COMPOSITE).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from typing import Final

from o3storage._native import (
    crc32,
    crc32_combine,
    crc32c,
    crc32c_combine,
    crc64nvme,
    crc64nvme_combine,
    sha1,
    sha256,
)
from o3storage.catalog import Checksum
from o3storage.s3._errors import S3Error

FULL_OBJECT: Final = "FULL_OBJECT"
COMPOSITE: Final = "COMPOSITE"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`name`: as in XML and in x-amz-checksum-algorithm. `field`: the digester's keyword.
    `size`: bytes of a value. `is_crc`: can be combined from parts."""

    name: str
    field: str
    size: int
    is_crc: bool
    element: str

    @property
    def header(self) -> str:
        return f"x-amz-checksum-{self.field}"


ALGORITHMS: Final = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("CRC32", "crc32", 4, True, "ChecksumCRC32"),
        Algorithm("CRC32C", "crc32c", 4, True, "ChecksumCRC32C"),
        Algorithm("CRC64NVME", "crc64nvme", 8, True, "ChecksumCRC64NVME"),
        Algorithm("SHA1", "sha1", 20, False, "ChecksumSHA1"),
        Algorithm("SHA256", "sha256", 32, False, "ChecksumSHA256"),
    )
}

BY_HEADER: Final = {algorithm.header: algorithm for algorithm in ALGORITHMS.values()}
BY_ELEMENT: Final = {algorithm.element: algorithm for algorithm in ALGORITHMS.values()}

DEFAULT: Final = ALGORITHMS["CRC64NVME"]
"""Kept for an object whose client sent none (as S3 does since 2024)."""


def find_algorithm(name: str) -> Algorithm:
    """By its name. Raises S3Error InvalidRequest."""
    found = ALGORITHMS.get(name.upper())
    if found is None:
        raise S3Error(
            "InvalidRequest",
            "Checksum algorithm provided is unsupported. Please try again with any of the valid "
            "types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
        )
    return found


def decode_value(algorithm: Algorithm, text: str, what: str) -> bytes:
    """The bytes of a base64 value. Raises S3Error InvalidRequest naming `what`."""
    value = decode_base64(text)
    if value is None or len(value) != algorithm.size:
        raise S3Error("InvalidRequest", f"Value for {what} is invalid.")
    return value


def decode_base64(text: str) -> bytes | None:
    """Strict base64, None for anything else."""
    try:
        return b64decode(text.encode("ascii"), validate=True)
    except (Base64Error, UnicodeEncodeError):
        return None


def encode_value(value: bytes, kind: str = FULL_OBJECT, parts: int = 0) -> str:
    """The text of a checksum; composite ones end in the number of parts."""
    text = b64encode(value).decode("ascii")
    return f"{text}-{parts}" if kind == COMPOSITE else text


def part_checksum_xml(checksum: Checksum | None) -> str:
    """The element of a part's checksum, or of a body's that was stored now; "" for none."""
    if checksum is None:
        return ""
    element = ALGORITHMS[checksum.algorithm].element
    return f"<{element}>{encode_value(checksum.value)}</{element}>"


def checksum_xml(checksum: Checksum | None, parts: int) -> str:
    """The elements of the checksum of an object of so many parts, and of its type; "" for none."""
    if checksum is None:
        return ""
    element = ALGORITHMS[checksum.algorithm].element
    return (
        f"<{element}>{encode_value(checksum.value, checksum.kind, parts)}</{element}>"
        f"<ChecksumType>{checksum.kind}</ChecksumType>"
    )


def digest_of(algorithm: Algorithm, data: bytes) -> bytes:
    """The checksum of `data` as the bytes that are base64-encoded."""
    if algorithm.field == "sha1":
        return sha1(data)
    if algorithm.field == "sha256":
        return sha256(data)
    function = {"crc32": crc32, "crc32c": crc32c, "crc64nvme": crc64nvme}[algorithm.field]
    return function(data).to_bytes(algorithm.size, "big")


def default_kind(algorithm: Algorithm) -> str:
    """The checksum type of a multipart upload that names none."""
    return FULL_OBJECT if algorithm is DEFAULT else COMPOSITE


def check_kind(algorithm: Algorithm, kind: str) -> None:
    """Raises S3Error InvalidRequest where S3 has no such combination."""
    if kind not in (FULL_OBJECT, COMPOSITE):
        raise S3Error("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    wrong = not algorithm.is_crc if kind == FULL_OBJECT else algorithm is DEFAULT
    if wrong:
        raise S3Error(
            "InvalidRequest",
            f"The {kind} checksum type cannot be used with the {algorithm.name.lower()} checksum "
            "algorithm.",
        )


class CrcCombiner:
    """The CRC of a whole from the CRCs of its pieces in order."""

    __slots__ = ("_algorithm", "_combine", "_value")

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._combine = _COMBINE[algorithm.field]
        self._value = 0

    def add(self, crc: bytes, length_bytes: int) -> None:
        """Append a piece of `length_bytes` whose checksum is `crc`."""
        self._value = self._combine(self._value, int.from_bytes(crc, "big"), length_bytes)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._algorithm.size, "big")


_COMBINE: Final = {
    "crc32": crc32_combine,
    "crc32c": crc32c_combine,
    "crc64nvme": crc64nvme_combine,
}
