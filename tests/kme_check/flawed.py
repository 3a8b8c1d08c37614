"""A pair of KMEs that conform to ETSI GS QKD 014, but for the flaws they are given.

Written apart from the product's simulator, so that each can show the other's mistakes. Behind
real TLS on loopback ports.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import secrets
import uuid
from urllib.parse import parse_qs, unquote

import trio

from qproxy.address import TcpAddress
from qproxy.config.model import PemFiles, SourceEndpoint
from qproxy.kme_check.ends import End
from qproxy.modes import ClientAuth
from qproxy.net.http_server import Response, serve_http
from qproxy.net.listen import open_listeners
from qproxy.tls.context import server_context
from qproxy.tls.names import certificate_names
from tests import pki

SIZE, LOW, HIGH, MOST = 256, 64, 1024, 8
NOT_FOUND = "one or more keys specified are not found on KME"


class Refused(Exception):  # noqa: N818 - it is an answer
    def __init__(self, status, message):
        super().__init__(message)
        self.status, self.message = status, message


class FlawedPair:
    """Both KMEs and what they share."""

    def __init__(self, flaws):
        self.flaws = frozenset(flaws)
        self.homes = {"gw-a": "kme-a", "gw-b": "kme-b"}
        self.waiting = {}
        self.given = {}
        self.statuses = 0
        #: Everything secret that was ever made, in the forms in which it could be shown.
        self.secrets = []

    def has(self, flaw):
        return flaw in self.flaws

    def handler(self, kme):
        async def handle(request):
            await trio.lowlevel.checkpoint()
            try:
                document = self.answer(kme, request)
            except Refused as refusal:
                return self.refusal(refusal)
            return self.response(200, document)

        return handle

    def response(self, status, document):
        body = json.dumps(document).encode() if not isinstance(document, bytes) else document
        kind = "text/plain" if self.has("says-text") else "application/json"
        headers = () if self.has("may-be-cached") else (("Cache-Control", "no-store"),)
        return Response(status, body, kind, headers)

    def refusal(self, refusal):
        status, message = refusal.status, refusal.message
        if self.has("html-errors"):
            return self.response(status, b"<html>no</html>")
        if self.has("leaks"):
            message = "".join(self.secrets[-1:])
        if self.has("own-words"):
            message = "that will not do"
        if self.has("capitals"):
            message = message.capitalize() + "."
        if self.has("odd-details"):
            return self.response(status, {"message": message, "details": "see the manual"})
        return self.response(status, {"message": message})

    def answer(self, kme, request):
        if request.peer_certificate is None:
            if self.has("no-client-certificate"):
                return self.status(kme, "gw-a", "gw-b")
            raise Refused(401, "unauthorized")
        (requester,) = certificate_names(request.peer_certificate)
        segment, _, call = request.path.removeprefix("/api/v1/keys/").partition("/")
        other = segment if self.has("no-percent-decoding") else unquote(segment)
        if other not in self.homes and not (call == "enc_keys" and self.has("any-sae")):
            raise Refused(404 if self.has("404") else 400, "no such SAE")
        if call == "status":
            return self.status(kme, requester, other)
        if request.method == "GET" and self.has("no-get"):
            raise Refused(405, "method not allowed")
        try:
            posted = json.loads(request.body) if request.body else {}
        except ValueError:
            raise Refused(400, "no JSON") from None
        if call == "enc_keys":
            return self.enc_keys(requester, other, request, posted)
        return self.dec_keys(requester, other, request, posted)

    def status(self, kme, requester, other):
        self.statuses += 1
        if self.has("status-503"):
            raise Refused(503, "busy")
        if self.has("status-garbage"):
            return b"{"
        other_kme = "kme-x" if self.has("other-kme") else self.homes.get(other, "kme-b")
        document = {
            "source_KME_ID": kme,
            "target_KME_ID": other_kme,
            "master_SAE_ID": requester,
            "slave_SAE_ID": other,
            "key_size": SIZE,
            "stored_key_count": 100,
            "max_key_count": 1000,
            "max_key_per_request": MOST,
            "max_key_size": HIGH,
            "min_key_size": LOW,
            "max_SAE_ID_count": 0,
            "status_extension": {"qber": 0.01, "key_rate_bps": 1000},
        }
        if self.has("integer-saes"):
            document |= {"master_SAE_ID": 1, "slave_SAE_ID": 2}
        if self.has("no-key-size"):
            del document["key_size"]
        if self.has("no-counts"):
            del document["stored_key_count"], document["max_SAE_ID_count"]
        if self.has("too-full"):
            document["stored_key_count"] = 2000
        if self.has("large-keys-only"):
            document |= {"key_size": 512, "min_key_size": 512}
        if self.has("leaks") and self.secrets:
            document["source_KME_ID"] = document["status_extension"]["qber"] = self.secrets[-1]
        if self.has("growing") and self.statuses > 4:
            document["max_key_size"] = HIGH * 2
        if self.has("simulated"):
            document["status_extension"]["simulated"] = True
        return document

    def enc_keys(self, requester, other, request, posted):
        asked = self.read_request(request, posted)
        number, size = asked["number"], asked["size"]
        if size % 8 and not self.has("any-size"):
            raise Refused(400, "size shall be a multiple of 8")
        low = 512 if self.has("large-keys-only") else LOW
        if not low <= size <= HIGH and not self.has("any-size"):
            raise Refused(400, "size is out of range")
        if number > MOST and not self.has("any-number"):
            raise Refused(504 if self.has("504") else 400, "number is out of range")
        if asked["mandatory"] and not self.has("any-extension"):
            raise Refused(400, "not all extension_mandatory parameters are supported")
        if asked["optional"] and self.has("no-optional"):
            raise Refused(412, "unknown extension")
        if asked["additional"] and not self.has("any-additional"):
            raise Refused(400, "there may be no additional SAEs")
        keys = [self.new_key(requester, other, size) for _ in range(number)]
        if self.has("no-keys"):
            keys = []
        if self.has("one-too-many") and number > 1:
            keys.append(self.new_key(requester, other, size))
        if self.has("one-too-few") and number > 1:
            keys.pop()
        if self.has("only-kme-b-upper-keys") and requester == "gw-b":
            return {"Keys": keys}
        return self.container(keys)

    def read_request(self, request, posted):
        if not isinstance(posted, dict):
            if not self.has("any-body"):
                raise Refused(400, "no key request")
            posted = {}
        default = 512 if self.has("large-keys-only") else SIZE
        values = {"number": posted.get("number", 1), "size": posted.get("size", default)}
        if request.method == "GET" and not self.has("get-ignores-query"):
            query = parse_qs(request.query)
            values = {
                "number": int(query.get("number", ["1"])[0]),
                "size": int(query.get("size", [str(default)])[0]),
            }
        return values | {
            "mandatory": posted.get("extension_mandatory"),
            "optional": posted.get("extension_optional"),
            "additional": posted.get("additional_slave_SAE_IDs"),
        }

    def new_key(self, requester, other, size):
        key = secrets.token_bytes(size if self.has("size-in-bytes") else -(-size // 8))
        if self.has("zero-keys"):
            key = bytes(len(key))
        if self.has("one-key-only"):
            key = b"\x07" * len(key)
        key_id = str(uuid.uuid4())
        if self.has("hex-ids"):
            key_id = key_id.replace("-", "")
        if self.has("unprintable-ids"):
            key_id = key_id[:-1] + "\x07"
        if self.has("older-lost"):
            self.waiting.clear()
        self.waiting[key_id] = (requester, other, key)
        text = base64.b64encode(key).decode()
        self.secrets += [key.hex(), str(key), text]
        if self.has("leaks"):
            key_id = text
            self.waiting[key_id] = (requester, other, key)
        if self.has("hex-keys"):
            text = key.hex()
        if self.has("loose-base64"):
            text = text[:-2] + chr(ord(text[-2]) + 1) + text[-1:]
        return {"key_ID": key_id, "key": text}

    def container(self, keys):
        if self.has("upper-keys"):
            return {"Keys": keys}
        if self.has("no-keys-member"):
            return {"key": keys}
        return {"keys": keys}

    def dec_keys(self, requester, other, request, posted):
        if request.method == "GET":
            items = [{"key_ID": parse_qs(request.query).get("key_ID", [""])[0]}]
        else:
            items = posted["key_IDs"]
        if self.has("no-id-extension") and any("key_ID_extension" in item for item in items):
            raise Refused(400, "unknown member")
        ids = [item["key_ID"] for item in items]
        found, gone = [], []
        for key_id in ids:
            entry = self.waiting.get(key_id)
            if entry is None and self.has("again"):
                entry = self.given.get(key_id)
            if entry is not None:
                master, slave, _ = entry
                if (master, slave) != (other, requester) and not self.has("any-slave"):
                    raise Refused(400 if self.has("400-for-401") else 401, "not named")
                found.append((key_id, entry))
            else:
                gone.append(key_id)
        if gone and self.has("loses-all"):
            for key_id, _ in found:
                self.waiting.pop(key_id, None)
        if gone and not (found and self.has("in-part")):
            return self.gone()
        if self.has("reverses"):
            found.reverse()
        for key_id, entry in found:
            self.given[key_id] = entry
            self.waiting.pop(key_id, None)
        flip = 1 if self.has("out-of-step") else 0
        encode = bytes.hex if self.has("hex-keys") else lambda key: base64.b64encode(key).decode()
        return self.container(
            [
                {
                    "key_ID": key_id.upper() if self.has("capital-ids") else key_id,
                    "key": encode(bytes(b ^ flip for b in key)),
                }
                for key_id, (_, _, key) in found
            ]
        )

    def gone(self):
        if self.has("not-found-404"):
            raise Refused(404, "no such key")
        if self.has("not-found-401"):
            raise Refused(401, "no")
        if self.has("not-found-500"):
            raise Refused(500, "oops")
        if self.has("invents"):
            return self.container(
                [{"key_ID": str(uuid.uuid4()), "key": base64.b64encode(bytes(range(32))).decode()}]
            )
        raise Refused(400, NOT_FOUND)


@dataclasses.dataclass(frozen=True)
class FlawedEnd(End):
    """An end that knows its pair of KMEs, for tests to look at."""

    pair: FlawedPair | None = dataclasses.field(default=None, repr=False, compare=False)


@contextlib.asynccontextmanager
async def flawed_pair(directory, *flaws):
    """Run a pair. Yields its two ends."""
    ca = pki.authority()
    pair = FlawedPair(flaws)
    async with trio.open_nursery() as nursery:
        ends = []
        for kme, sae, peer in (("kme-a", "gw-a", "gw-b"), ("kme-b", "gw-b", "gw-a")):
            auth = ClientAuth.OPTIONAL if "no-client-certificate" in flaws else ClientAuth.REQUIRED
            tls = server_context(pki.identity(ca, kme), trust=ca.trust, client_auth=auth)
            listeners = open_listeners(TcpAddress("127.0.0.1", 0))
            port = listeners[0].getsockname()[1]

            async def serve(handler, listeners, tls, *, task_status):
                await serve_http(handler, listeners, tls=tls, task_status=task_status)

            await nursery.start(serve, pair.handler(kme), listeners, tls)
            files = pki.write_identity(directory, sae, pki.identity(ca, sae), ca)
            ends.append(
                FlawedEnd(
                    kme,
                    SourceEndpoint(
                        name=kme,
                        url=f"https://127.0.0.1:{port}",
                        ca=files.ca,
                        client=PemFiles(files.certificate, files.private_key),
                        server_name=kme,
                    ),
                    sae,
                    peer,
                    request_timeout_s=5.0,
                    connect_timeout_s=5.0,
                    pair=pair,
                )
            )
        try:
            yield ends
        finally:
            nursery.cancel_scope.cancel()
