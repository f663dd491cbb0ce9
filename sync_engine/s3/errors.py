"""What S3 and the driver say went wrong, translated at the door: the known-permanent first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sync_engine.errors import (
    ConfigError,
    Conflict,
    StoreBusy,
    StoreRejected,
    StoreUnavailable,
    SyncEngineError,
)

__all__ = [
    "ABSENT",
    "STORE",
    "TRANSIENT",
    "NoSuchKey",
    "NoSuchUpload",
    "PreconditionFailed",
    "classify",
    "translated",
]

STORE: Final = "s3"
_BUSY_S = 1.0

_CONFIG: Final[Mapping[str, str]] = {
    "NoSuchBucket": "there is no such bucket: create it, or correct its name",
    "InvalidBucketName": "this is no valid name of a bucket",
    "InvalidAccessKeyId": "the server does not know the access key id: check the credentials",
    "SignatureDoesNotMatch": "the secret access key is wrong: check the credentials",
    "ExpiredToken": "the session token has expired: get new credentials",
    "TokenRefreshRequired": "the session token has expired: get new credentials",
    "ExpiredTokenException": "the session token has expired: get new credentials",
    "InvalidToken": "the session token is not valid: get new credentials",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it (NTP), then try again",
    "RequestExpired": "the clock of this machine is wrong: set it (NTP), then try again",
    "AuthorizationHeaderMalformed": "the region is wrong",
    "IllegalLocationConstraintException": "the region is wrong",
    "PermanentRedirect": "the bucket is in another region or at another endpoint",
    "AllAccessDisabled": "access to this bucket is disabled",
    "AccountProblem": "the account has a problem: ask its owner",
    "NotSignedUp": "the account is not signed up for S3",
}
_REJECTED: Final[Mapping[str, str]] = {
    "AccessDenied": "access denied: the policy of these credentials lacks a permission",
    "403": "access denied: check the credentials and their policy",
    "KeyTooLongError": "a key has at most 1,024 bytes of UTF-8",
    "EntityTooLarge": "the object is larger than the server takes",
    "EntityTooSmall": "a part is smaller than 5 MiB",
    "InvalidArgument": "the server does not take this key or option",
    "InvalidRequest": "the server does not take this request",
    "InvalidStorageClass": "the server does not know this storage class",
    "InvalidObjectState": "the object is archived: restore it first",
    "InvalidPart": "a part is missing or was changed",
    "InvalidPartOrder": "the parts are out of order",
    "NotImplemented": "the server does not know this operation",
    "MethodNotAllowed": "the server does not allow this operation here",
    "KMS.DisabledException": "the encryption key is disabled",
    "KMS.NotFoundException": "the encryption key does not exist",
}
TRANSIENT: Final[Mapping[str, str]] = {
    "SlowDown": "the server asks to slow down",
    "503": "the server asks to slow down",
    "ServiceUnavailable": "the server is busy",
    "Throttling": "the server asks to slow down",
    "ThrottlingException": "the server asks to slow down",
    "RequestLimitExceeded": "the server asks to slow down",
    "TooManyRequests": "the server asks to slow down",
    "429": "the server asks to slow down",
    "InternalError": "the server failed",
    "500": "the server failed",
    "502": "a gateway failed",
    "504": "a gateway timed out",
    "RequestTimeout": "the server waited too long for us",
    "BadDigest": "the bytes were damaged on the way",
    "InvalidDigest": "the bytes were damaged on the way",
    "XAmzContentSHA256Mismatch": "the bytes were damaged on the way",
    "IncompleteBody": "the request did not arrive whole",
    "OperationAborted": "another operation on the same thing is under way",
    "ConditionalRequestConflict": "another write of the same key is under way",
    "BucketAlreadyExists": "the bucket is being changed",
}
_BUSY: Final = frozenset(
    code for code, hint in TRANSIENT.items() if hint.endswith(("slow down", "is busy"))
)
ABSENT: Final = frozenset({"NoSuchKey", "NotFound", "404", "NoSuchVersion"})
_PRECONDITION: Final = frozenset({"PreconditionFailed", "412"})
_EXPECTING = re.compile(r"expecting '([a-z0-9\-]+)'")
# Classes of botocore by name: they are looked up without importing it.
_DRIVER_CONFIG: Final[Mapping[str, str]] = {
    "NoCredentialsError": "no credentials found: give keys or a profile, or set up the usual chain",
    "PartialCredentialsError": "the credentials are not complete: an id needs its secret",
    "ProfileNotFound": "there is no such profile in the AWS configuration files",
    "NoRegionError": "name a region",
    "InvalidRegionError": "the region is no valid name",
    "ConfigParseError": "the AWS configuration files cannot be read",
    "ConfigNotFound": "the AWS configuration files cannot be read",
    "TokenRetrievalError": "the login has ended: sign in again",
    "SSOTokenLoadError": "the login has ended: sign in again",
    "UnauthorizedSSOTokenError": "the login has ended: sign in again",
    "SSLError": "the certificate of the server is not trusted: see verify_tls",
    "InvalidEndpointConfigurationError": "the endpoint cannot be used",
    "UnknownSignatureVersionError": "the AWS configuration names an unknown signature",
    "MissingDependencyException": "a package that the credentials need is not installed",
}
_DRIVER_REJECTED: Final = {"ParamValidationError", "UnseekableStreamError"}
_DRIVER_TRANSIENT: Final[Mapping[str, str]] = {
    "ConnectTimeoutError": "no connection in time",
    "ReadTimeoutError": "no answer in time",
    "EndpointConnectionError": "the server cannot be reached",
    "ProxyConnectionError": "the proxy cannot be reached",
    "ConnectionClosedError": "the connection was lost",
    "ResponseStreamingError": "the answer was cut off",
    "IncompleteReadError": "the answer was cut off",
    "IncompleteRead": "the answer was cut off",
    "ProtocolError": "the connection was lost",
    "ResponseParserError": "the answer was cut off or is no S3's",
    "CredentialRetrievalError": "credentials could not be fetched",
    "MetadataRetrievalError": "credentials could not be fetched",
}


class NoSuchKey(StoreRejected):
    """There is no object of this key (or no such version)."""


class NoSuchUpload(StoreRejected):
    """The multipart upload was completed or aborted, or never was."""


class PreconditionFailed(Conflict):
    """A conditional write found another object than it was allowed to replace.

    Attributes:
        key: The key written to.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key, 0, 1)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key!r} is not in the state that the condition names: look, and decide anew"


def classify(exc: BaseException, operation: str, subject: str = "") -> SyncEngineError:
    """Return our error for a driver's.

    Args:
        exc: What the driver raised; the unknown counts as transient.
        operation: What was tried.
        subject: Bucket or ``bucket/key``, for messages.
    """
    response = getattr(exc, "response", None)
    if isinstance(response, dict) and "Error" in response:
        return _of_answer(response, operation, subject)
    name = _name_in(type(exc), _DRIVER_CONFIG)
    if name and not (name == "SSLError" and _is_passing_ssl(exc)):
        return ConfigError(f"s3: {operation}: {_DRIVER_CONFIG[name]}")
    if _name_in(type(exc), _DRIVER_REJECTED):
        return StoreRejected(STORE, operation, f"{subject}: {type(exc).__name__}")
    name = _name_in(type(exc), _DRIVER_TRANSIENT)
    hint = _DRIVER_TRANSIENT[name] if name else f"{type(exc).__name__}"
    return StoreUnavailable(STORE, operation, hint)


def _name_in(kind: type, names: Any) -> str:
    return next((each.__name__ for each in kind.__mro__ if each.__name__ in names), "")


def _is_passing_ssl(exc: BaseException) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" not in str(exc)


def _of_answer(response: Mapping[str, Any], operation: str, subject: str) -> SyncEngineError:
    error = response.get("Error", {})
    meta = response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode") or 0)
    code = str(error.get("Code") or status)
    headers = {str(k).lower(): str(v) for k, v in dict(meta.get("HTTPHeaders") or {}).items()}
    region = _right_region(error, headers)
    about = f"{subject}: " if subject else ""
    if code in _CONFIG or (region and status in {301, 307, 400}):
        hint = _CONFIG.get(code, "the bucket is in another region")
        if region:
            hint += f": set region = {region!r}"
        return ConfigError(f"s3: {operation}: {about}{hint}")
    if code in _PRECONDITION:
        return PreconditionFailed(subject.partition("/")[2] or subject)
    if code in TRANSIENT or status >= 500 or status == 429:
        return _passing(code, status, headers, operation)
    if code == "NoSuchUpload":
        return NoSuchUpload(STORE, operation, f"{about}the multipart upload is gone: start it anew")
    if code in ABSENT or status == 404:
        if "/" not in subject:
            return ConfigError(f"s3: {operation}: {about}{_CONFIG['NoSuchBucket']}")
        return NoSuchKey(STORE, operation, f"{about}there is no such object")
    if code in _REJECTED:
        return StoreRejected(STORE, operation, about + _REJECTED[code])
    if 400 <= status < 500:
        return StoreRejected(STORE, operation, f"{about}the server refused ({code})")
    return StoreUnavailable(STORE, operation, f"{about}unexpected answer ({code})")


def _passing(
    code: str, status: int, headers: Mapping[str, str], operation: str
) -> StoreUnavailable:
    hint = TRANSIENT.get(code) or TRANSIENT.get(str(status)) or f"the server failed ({code})"
    if code not in _BUSY and status not in {429, 503}:
        return StoreUnavailable(STORE, operation, hint)
    try:
        after_s = float(headers.get("retry-after", ""))
    except ValueError:
        after_s = 0.0
    return StoreBusy(STORE, operation, hint, after_s if 0 < after_s < 3600 else _BUSY_S)


def _right_region(error: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    named = headers.get("x-amz-bucket-region") or str(error.get("Region") or "")
    found = _EXPECTING.search(str(error.get("Message") or ""))
    return named or (found[1] if found else "")


@contextmanager
def translated(operation: str, subject: str = "") -> Iterator[None]:
    """Raise the engine's errors in place of the driver's; mistakes in our own code come through."""
    try:
        yield
    except SyncEngineError:
        raise
    except Exception as exc:
        if type(exc).__module__.partition(".")[0] not in _DRIVERS and not isinstance(exc, OSError):
            raise
        # The driver's error holds the request, and with it what nobody should log.
        raise classify(exc, operation, subject) from _bare(exc)


_DRIVERS: Final = {"botocore", "boto3", "s3transfer", "urllib3", "http", "xml", "ssl", "socket"}


def _bare(exc: BaseException) -> Exception:
    """Return the cause as class and code alone: texts of the driver may quote URLs and keys."""
    response = getattr(exc, "response", None)
    code = ""
    if isinstance(response, dict):
        code = str(response.get("Error", {}).get("Code", ""))
    return RuntimeError(f"{type(exc).__module__}.{type(exc).__name__} {code}".rstrip())
