"""The driver, held: imported on demand, without retries, proxies or log lines of its own."""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from typing import Any, Final

from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.s3.address import S3Settings
from sync_engine.s3.errors import STORE, translated
from sync_engine.s3.listing import Row, cut, parse_rows
from sync_engine.s3.retry import time_left_s

__all__ = ["ROWS", "make_driver"]

ROWS: Final = "Rows"
"""Name under which a listing's objects stand in the driver's answer."""

_CHUNK: Final = 1 << 16
_LISTING: Final = ".ListObjectsV2"
_rows: ContextVar[list[Row] | None] = ContextVar("s3_rows", default=None)
_LOGGERS: Final = ("botocore", "boto3", "urllib3", "s3transfer")
_SECRET: Final = re.compile(
    r"(Credential=|Signature=|X-Amz-Security-Token['\"]?[:=]\s*|x-amz-security-token[:=]\s*|"
    r"X-Amz-Credential=|X-Amz-Signature=|AWSAccessKeyId['\"]?[=:>]\s*)(b?['\"]?)[^\s,&'\"<;)]+",
    re.IGNORECASE,
)


def make_driver(settings: S3Settings, service: str = "s3") -> Any:
    """Return a client of the driver. Connects to nothing yet, unless the chain has to be asked.

    Raises:
        ConfigError: The driver is not installed, or the AWS configuration cannot be used.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.httpsession import URLLib3Session
    except ModuleNotFoundError as exc:
        raise ConfigError("s3: install the driver: pip install 'sync-engine[s3]'") from exc
    with translated("connect"):
        session = boto3.session.Session(
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=settings.secret_access_key,
            aws_session_token=settings.session_token,
            region_name=settings.region,
            profile_name=settings.profile,
        )
        region = session.region_name
        if region is None and settings.endpoint_url is not None:
            region = "us-east-1"
        style = "path" if settings.path_style else settings.addressing
        config: dict[str, Any] = {
            "connect_timeout": settings.connect_timeout_s,
            "read_timeout": settings.read_timeout_s,
            "max_pool_connections": settings.connections_max,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "user_agent_extra": "sync-engine",
        }
        if not settings.use_proxies:
            config["proxies"] = {}
        if service == "s3":
            config |= {
                "signature_version": "s3v4",
                "s3": {"addressing_style": style},
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            }
        client = session.client(
            service,
            region_name=region,
            endpoint_url=settings.endpoint_url,
            verify=settings.verify_tls,
            config=Config(**config),
        )
    _mask_logs(settings)
    if service != "s3":
        return client
    verify: Any = settings.verify_tls
    if verify is True:
        # `ca_bundle` of the AWS configuration, as the driver's own transport has it.
        verify = session._session.get_config_variable("ca_bundle") or True  # noqa: SLF001
    proxies: Any = {}
    if settings.use_proxies:
        from botocore.utils import get_environ_proxies

        proxies = get_environ_proxies(client.meta.endpoint_url)
    transport = _Transport(
        URLLib3Session(
            verify=verify,
            proxies=proxies,
            timeout=(settings.connect_timeout_s, settings.read_timeout_s),
            max_pool_connections=settings.connections_max,
        ),
        settings.read_timeout_s,
    )
    client.meta.events.register("before-send.s3", transport.send)
    client.meta.events.register("before-parse.s3.ListObjectsV2", _take_rows)
    return client


class _Transport:
    """Sends requests as the driver would, but waits no longer than the deadline for an answer.

    A timeout of a socket bounds the wait for the next byte alone: a server that drips would hold a
    listing for hours.
    """

    def __init__(self, session: Any, whole_s_max: float) -> None:
        self._session = session
        self._whole_s_max = whole_s_max

    def send(self, request: Any, event_name: str = "", **_: Any) -> Any:
        """Answer the driver's ``before-send``."""
        left_s = time_left_s()
        if left_s <= 0:
            raise StoreUnavailable(STORE, "request", "the deadline is over")
        streams, request.stream_output = request.stream_output, True
        response = self._session.send(request)
        if not streams or response.status_code >= 300:
            data = _read(response.raw, time_left_s(), self._whole_s_max)
            if response.status_code == 200 and event_name.endswith(_LISTING):
                # Cut before the driver sees it: it would look through all of it for errors.
                objects, data = cut(data)
                _rows.set(parse_rows(objects, data))
            response.raw = _Whole(data)
        return response


class _Whole:
    """A body that is there; the driver asks for a stream."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, *_: Any, **__: Any) -> list[bytes]:
        """Return the body as one chunk."""
        return [self._data]


def _read(raw: Any, left_s: float, whole_s_max: float) -> bytes:
    until_left_s = left_s - min(left_s, whole_s_max)
    parts = []
    try:
        while data := raw.read1(_CHUNK):
            parts.append(data)
            if time_left_s() <= until_left_s:
                break
    except BaseException:
        raw.close()
        raise
    if data:
        raw.close()
        raise StoreUnavailable(STORE, "request", "the answer did not come whole in time")
    raw.release_conn()
    return b"".join(parts)


def _take_rows(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    rows = _rows.get()
    _rows.set(None)
    if response_dict["status_code"] == 200 and rows is not None:
        customized_response_dict[ROWS] = rows


class _Mask(logging.Filter):
    """Takes secrets out of the driver's log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace what must not be shown; always lets the record through."""
        try:
            text = record.getMessage()
        except Exception:
            return True
        masked = _SECRET.sub(r"\1\2***", text)
        for secret in self.known:
            masked = masked.replace(secret, "***")
        if masked != text:
            record.msg, record.args = masked, ()
        record.exc_info = None if record.levelno <= logging.DEBUG else record.exc_info
        return True


_mask: Final = _Mask()


def _mask_logs(settings: S3Settings) -> None:
    secrets = (settings.access_key_id, settings.secret_access_key, settings.session_token)
    _mask.known |= {secret for secret in secrets if secret}
    names = [n for n in logging.root.manager.loggerDict if n.partition(".")[0] in _LOGGERS]
    for name in (*_LOGGERS, *names):
        logger = logging.getLogger(name)
        if _mask not in logger.filters:
            logger.addFilter(_mask)
