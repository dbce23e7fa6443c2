"""Everything that knows S3: signatures, XML, headers, errors, operations.

    service = Service(node, credentials=..., clock=..., entropy=..., config=ServiceConfig())
    response = await service.handle(http_request)

`credentials` finds the secret of an access key id (`CredentialSource`). `read_signed_body` serves
JSON APIs that are signed as S3's requests are.
"""

from __future__ import annotations

from o3storage.s3._errors import CODES, S3Error
from o3storage.s3._service import Service, ServiceConfig, read_signed_body
from o3storage.s3._sigv4 import Credential, CredentialSource, Identity, Miss

__all__ = [
    "CODES",
    "Credential",
    "CredentialSource",
    "Identity",
    "Miss",
    "S3Error",
    "Service",
    "ServiceConfig",
    "read_signed_body",
]
