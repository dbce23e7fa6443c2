"""S3 error codes: status, message, and the XML document that carries them.

Source: the Amazon S3 API reference, "Error responses" (list of error codes). A code that is not in
`CODES` cannot be raised, so the table is the whole of what a client can meet.
"""

from __future__ import annotations

from typing import Final

from o3storage.s3._xml import escape

CODES: Final[dict[str, tuple[int, str]]] = {
    "AccessDenied": (403, "Access Denied"),
    "AccessForbidden": (403, "CORSResponse: This CORS request is not allowed."),
    "AuthorizationHeaderMalformed": (400, "The authorization header you provided is invalid."),
    "AuthorizationQueryParametersError": (
        400,
        "The authorization query parameters that you provided are not valid.",
    ),
    "BadDigest": (
        400,
        "The Content-MD5 or checksum value that you specified did not match what the server "
        "received.",
    ),
    "BadRequest": (400, "Bad Request"),
    "BucketAlreadyExists": (
        409,
        "The requested bucket name is not available. The bucket namespace is shared by all users "
        "of the system. Specify a different name and try again.",
    ),
    "BucketNotEmpty": (409, "The bucket that you tried to delete is not empty."),
    "ConditionalRequestConflict": (
        409,
        "A conflicting operation occurred during the conditional request. Try again.",
    ),
    "EntityTooLarge": (
        400,
        "Your proposed upload exceeds the maximum allowed object size.",
    ),
    "EntityTooSmall": (
        400,
        "Your proposed upload is smaller than the minimum allowed object size.",
    ),
    "IllegalLocationConstraintException": (
        400,
        "The specified location constraint is not the region of this server.",
    ),
    "IncompleteBody": (
        400,
        "You did not provide the number of bytes specified by the Content-Length HTTP header.",
    ),
    "InternalError": (500, "An internal error occurred. Try again."),
    "InvalidAccessKeyId": (
        403,
        "The access key Id you provided does not exist in our records.",
    ),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidBucketState": (
        409,
        "The request is not valid for the current state of the bucket.",
    ),
    "InvalidDigest": (400, "The Content-MD5 or checksum value that you specified is not valid."),
    "InvalidPart": (
        400,
        "One or more of the specified parts could not be found. The part might not have been "
        "uploaded, or the specified entity tag might not have matched the part's entity tag.",
    ),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable"),
    "InvalidPartOrder": (
        400,
        "The list of parts was not in ascending order. Parts list must be specified in order by "
        "part number.",
    ),
    "InvalidPolicyDocument": (
        400,
        "The content of the form does not meet the conditions specified in the policy document.",
    ),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidRequest": (400, "Invalid Request"),
    "InvalidStorageClass": (400, "The storage class you specified is not valid"),
    "InvalidTag": (400, "The tag provided was not a valid tag."),
    "InvalidToken": (400, "The provided token is malformed or otherwise not valid."),
    "InvalidURI": (400, "The specified URI couldn't be parsed."),
    "KeyTooLongError": (400, "Your key is too long"),
    "MalformedPOSTRequest": (
        400,
        "The body of your POST request is not well-formed multipart/form-data.",
    ),
    "MalformedTrailerError": (
        400,
        "The request contained trailing data that was not well-formed or did not conform to our "
        "published schema.",
    ),
    "MalformedXML": (
        400,
        "The XML that you provided was not well formed or did not validate against our published "
        "schema.",
    ),
    "MetadataTooLarge": (
        400,
        "Your metadata headers exceed the maximum allowed metadata size.",
    ),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "MissingRequestBodyError": (400, "Request body is empty."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchBucketPolicy": (404, "The bucket policy does not exist"),
    "NoSuchCORSConfiguration": (404, "The CORS configuration does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchLifecycleConfiguration": (404, "The lifecycle configuration does not exist"),
    "NoSuchPublicAccessBlockConfiguration": (
        404,
        "The public access block configuration was not found",
    ),
    "NoSuchTagSet": (404, "The TagSet does not exist"),
    "NoSuchUpload": (
        404,
        "The specified multipart upload does not exist. The upload ID might be invalid, or the "
        "multipart upload might have been aborted or completed.",
    ),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NoSuchWebsiteConfiguration": (
        404,
        "The specified bucket does not have a website configuration",
    ),
    "NotImplemented": (
        501,
        "A header or parameter you provided implies functionality that is not implemented",
    ),
    "ObjectLockConfigurationNotFoundError": (
        404,
        "Object Lock configuration does not exist for this bucket",
    ),
    "OperationAborted": (
        409,
        "A conflicting conditional operation is currently in progress against this resource. "
        "Try again.",
    ),
    "OwnershipControlsNotFoundError": (404, "The bucket ownership controls were not found"),
    "PreconditionFailed": (
        412,
        "At least one of the preconditions you specified did not hold.",
    ),
    "ReplicationConfigurationNotFoundError": (
        404,
        "The replication configuration was not found",
    ),
    "RequestTimeTooSkewed": (
        403,
        "The difference between the request time and the server's time is too large.",
    ),
    "RequestTimeout": (
        408,
        "Your socket connection to the server was not read from or written to within the timeout "
        "period.",
    ),
    "ServiceUnavailable": (503, "The service is unable to handle the request. Try again."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided. Check "
        "your key and signing method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
    "StorageFull": (507, "The store has reached its free-space reserve and accepts no new data."),
    "UserKeyMustBeSpecified": (
        400,
        "The bucket POST must contain the specified field name. If it is specified, check the "
        "order of the fields.",
    ),
    "XAmzContentSHA256Mismatch": (
        400,
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
    ),
}
"""Code -> (HTTP status, message when the raiser gives none)."""

RETRY_AFTER_S: Final = 1
"""What a 503 asks a client to wait: about the time of one election."""

XML_CONTENT_TYPE: Final = "application/xml"


class S3Error(Exception):
    """An answer with an S3 error code.

    `details` are extra XML elements in order, `headers` extra response headers, `message` None is
    the code's own.
    """

    __slots__ = ("code", "details", "headers", "message", "status")

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        details: tuple[tuple[str, str], ...] = (),
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        status, default = CODES[code]
        super().__init__(code)
        self.code = code
        self.status = status
        self.message = message or default
        self.details = details
        self.headers = headers

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class NotModified(Exception):
    """A conditional read whose answer is 304; carries the headers that a 304 keeps."""

    __slots__ = ("headers",)

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        super().__init__("not modified")
        self.headers = headers


def error_document(error: S3Error, *, resource: str, request_id: str, host_id: str) -> bytes:
    """The XML body of an error answer, UTF-8."""
    # Line ends stay: people read StringToSign and CanonicalRequest.
    details = "".join(
        f"<{name}>{escape(value).replace('&#xa;', chr(10))}</{name}>"
        for name, value in error.details
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message>{details}"
        f"<Resource>{escape(resource)}</Resource>"
        f"<RequestId>{request_id}</RequestId><HostId>{host_id}</HostId></Error>"
    ).encode()
