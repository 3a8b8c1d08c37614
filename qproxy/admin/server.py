"""The admin listener: four read-only resources in plain HTTP, off the data path.

    GET /healthz    200 while the event loop turns
    GET /readyz     200 where every peer's policy is met, else 503; JSON says why
    GET /metrics    Prometheus text or OpenMetrics
    GET /status     JSON, described by status.schema.json

It asks nobody who they are, so it listens on this machine unless somebody says otherwise, changes
nothing, and holds no secret. A web page in a browser here could give its own name our address and
read it (DNS rebinding), so over TCP the Host header must be one that no page can have.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from qproxy.address import TcpAddress, UnixAddress
from qproxy.admin.assess import assess
from qproxy.admin.document import encode_document, readiness_document, status_document
from qproxy.admin.metrics import render_metrics
from qproxy.admin.snapshot import snapshot
from qproxy.admin.status import GatewayStatus
from qproxy.config.model import AdminConfig
from qproxy.log import Logger
from qproxy.net.http_server import HttpLimits, Request, Response, serve_http
from qproxy.net.listen import open_listeners

if TYPE_CHECKING:
    from qproxy.runtime.gateway import Gateway

#: A scraper, a health check and a few people.
LIMITS: Final = HttpLimits(
    max_body_bytes=0,
    max_header_bytes=8192,
    max_connections=32,
    read_timeout_s=5.0,
    write_timeout_s=10.0,
    idle_timeout_s=30.0,
)
_HEADERS: Final = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))

Handler = Callable[[Request], Awaitable[Response]]
TakeSnapshot = Callable[[], Awaitable[GatewayStatus]]


class AdminApi:
    """Answers requests from snapshots.

    Args:
        take_snapshot: reads the gateway, now; it may have to ask its workers.
        config: where it listens, for the check of the Host header.
    """

    def __init__(self, take_snapshot: TakeSnapshot, config: AdminConfig) -> None:
        self._take_snapshot = take_snapshot
        self._config = config
        self._resources: dict[str, Handler] = {
            "/healthz": self._health,
            "/readyz": self._ready,
            "/metrics": self._metrics,
            "/status": self._status,
        }

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        if isinstance(self._config.listen, TcpAddress) and not allowed_host(
            request.headers.get("host", ""), self._config
        ):
            return _json(421, {"message": "this Host is not served here; see admin.hosts"})
        resource = self._resources.get(request.path)
        if resource is None:
            return _json(404, {"message": "not found", "resources": list(self._resources)})
        if request.method not in {"GET", "HEAD"}:
            return _json(405, {"message": "GET or HEAD only"}, ("Allow", "GET, HEAD"))
        return await resource(request)

    async def _health(self, _request: Request) -> Response:
        return _json(200, {"alive": True})

    async def _ready(self, _request: Request) -> Response:
        assessment = assess(await self._take_snapshot())
        return _json(200 if assessment.ready else 503, readiness_document(assessment))

    async def _metrics(self, request: Request) -> Response:
        status = await self._take_snapshot()
        # With many peers the text is long: it is made beside the event loop, not on it.
        body, content_type = await trio.to_thread.run_sync(
            lambda: render_metrics(status, assess(status), request.headers.get("accept", ""))
        )
        return Response(200, body, content_type, _HEADERS)

    async def _status(self, _request: Request) -> Response:
        status, time = await self._take_snapshot(), dt.datetime.now(dt.UTC)
        body = await trio.to_thread.run_sync(
            lambda: encode_document(status_document(status, assess(status), time))
        )
        return Response(200, body, headers=_HEADERS)


def allowed_host(host: str, config: AdminConfig) -> bool:
    """Whether a request with this Host header may be answered over TCP.

    ``localhost`` and loopback addresses always may, the names of ``admin.hosts`` too, and with
    ``unsafe_allow_remote`` every address and the name listened on: an address is not a name that
    somebody else's DNS could point here.

    Args:
        host: the header's value, with or without a port; empty where there was none.
        config: the admin section.
    """
    name = host.strip().lower()
    if name.startswith("["):
        name, bracket, port = name[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            return False
    elif ":" in name:
        name, _, port = name.partition(":")
        if not _is_port(f":{port}"):
            return False
    name = name.removesuffix(".")
    if name == "localhost" or name in {known.lower() for known in config.hosts or ()}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        listen = config.listen
        return (
            config.unsafe_allow_remote
            and isinstance(listen, TcpAddress)
            and name == listen.host.lower()
            and name != ""
        )
    return address.is_loopback or config.unsafe_allow_remote


async def serve_admin(
    gateway: Gateway,
    config: AdminConfig,
    *,
    log: Logger,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a gateway's state until cancelled; see :func:`serve_snapshots`."""

    async def take_snapshot() -> GatewayStatus:
        return snapshot(gateway, trio.current_time())

    await serve_snapshots(take_snapshot, config, log=log, task_status=task_status)


async def serve_snapshots(
    take_snapshot: TakeSnapshot,
    config: AdminConfig,
    *,
    log: Logger,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. A fault in here never ends the gateway once it has started.

    Args:
        take_snapshot: reads the gateway, now.
        config: where to listen; ``listen`` is not None.
        log: for the address, and for faults.
        task_status: started with the addresses once connections are accepted.

    Raises:
        OSError: the address cannot be bound; only before it has started.
    """
    if config.listen is None:
        raise ValueError("admin.listen is not configured")
    listeners = open_listeners(config.listen)
    addresses = tuple(_text_address(config, sock.getsockname()) for sock in listeners)
    api = AdminApi(take_snapshot, config)
    serve = partial(
        serve_http, api.handle, listeners, limits=LIMITS, log=logging.getLogger(__name__)
    )
    log.info("admin_listening", addresses=list(addresses))
    task_status.started(addresses)
    try:
        await serve()
    except Exception as error:  # a fault of ours costs the view, never the traffic
        log.unexpected("admin_failed", error)
    finally:
        _remove_socket(config)


def _remove_socket(config: AdminConfig) -> None:
    if isinstance(config.listen, UnixAddress):
        with contextlib.suppress(OSError):
            Path(config.listen.path).unlink()


def _text_address(config: AdminConfig, name: object) -> str:
    if isinstance(name, tuple) and len(name) >= 2:
        return str(TcpAddress(str(name[0]), int(name[1])))
    return str(config.listen)


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


def _json(status: int, body: dict[str, object], *headers: tuple[str, str]) -> Response:
    return Response(status, encode_document(body), headers=(*_HEADERS, *headers))
