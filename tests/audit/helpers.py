"""Logs, clocks and disks for the audit tests."""

import datetime as dt
import errno
import threading
from dataclasses import replace

from qproxy.audit.facts import (
    EpochConfirmedFacts,
    GatewayStarted,
    GatewayStopped,
    LogHeader,
)
from qproxy.audit.record import CHAIN_START, AuditRecord, Chain, Head, Stamp, encode_line
from qproxy.audit.storage import DiskFile, LogIdentity
from qproxy.audit.trail import TunnelTrail
from qproxy.audit.verify import verify
from qproxy.audit.writer import AuditWriter
from qproxy.errors import Reason
from qproxy.keys import KeyOrigin
from qproxy.modes import Aead, KemAlgorithm, Mode, Policy
from qproxy.tunnel.events import EpochCommitted, EpochConfirmed, Traffic, TunnelClosed
from qproxy.tunnel.settings import Role

KEY = bytes(range(32))
CHAIN_ID = "0123456789abcdef0123456789abcdef"
CONNECTION_ID = bytes(range(16))
DAY = dt.datetime(2026, 1, 31, 12, 0, 0, tzinfo=dt.UTC)


def stamp(us):
    return Stamp.at(DAY + dt.timedelta(microseconds=us), us)


def header(node="gw-a", *, key=None, number=1, previous=CHAIN_START, chain_id=CHAIN_ID):
    return LogHeader(
        node=node,
        version="0.1.0",
        algorithm=Chain(key).algorithm,
        chain_id=chain_id,
        file_number=number,
        previous_hash=previous.hex(),
    )


def started():
    return GatewayStarted(version="0.1.0", kem_provider="openssl")


def stopped():
    return GatewayStopped(reason=Reason.SHUTDOWN)


def confirmed(epoch, peer="gw-b"):
    return EpochConfirmedFacts(
        peer=peer, connection_id=CONNECTION_ID.hex(), epoch=epoch, epoch_id=f"{epoch:032x}"
    )


def seal(facts, *, key=None, head=None, first_us=0):
    """Lines of a log, and its head."""
    head = head or Head()
    lines = []
    for number, fact in enumerate(facts):
        record = AuditRecord(head.sequence + 1, stamp(first_us + number * 1000), fact)
        line, digest = encode_line(record, head.hash, Chain(key))
        head = Head(record.sequence, digest)
        lines.append(line)
    return lines, head


def log_lines(count=6, *, key=None):
    return seal([header(key=key), started(), *map(confirmed, range(1, count - 1))], key=key)[0]


def check(lines, **options):
    """Verify lines as one file."""
    return verify([("log", lines)], **options)


def split_file(data):
    return data.splitlines(keepends=True)


# Two gateways and one tunnel ------------------------------------------------------------------

ORIGIN = KeyOrigin("kme", "etsi-qkd-014", simulated=True)


def committed(epoch, *, hybrid=True, confirmed=True, reason=Reason.REKEY_INTERVAL, key_ids=None):
    ids = key_ids if key_ids is not None else ((f"key-{epoch}",) if hybrid else ())
    return EpochCommitted(
        epoch=epoch,
        attempt=1,
        mode=Mode.HYBRID if hybrid else Mode.CLASSICAL_ONLY,
        reason=reason,
        epoch_id=epoch.to_bytes(16, "big"),
        kem=KemAlgorithm.ML_KEM_1024,
        aead=Aead.AES_256_GCM,
        key_ids=ids,
        confirmed=confirmed,
        qkd_ever=hybrid,
        origins=(ORIGIN,) * len(ids),
    )


class End:
    """One end of a tunnel whose trail is kept as facts."""

    def __init__(self, node, peer, role, *, connection_id=CONNECTION_ID):
        self.node, self.peer, self.role = node, peer, role
        self.connection_id = connection_id
        self.trail = TunnelTrail(peer=peer, role=role)
        self.facts = [header(node, chain_id=("aa" if role is Role.CLIENT else "bb") * 16)]
        self.facts.append(started())
        self.sent = self.received = self.discarded = self.streams = 0

    @property
    def traffic(self):
        return Traffic(
            bytes_sent=self.sent,
            bytes_received=self.received,
            bytes_discarded=self.discarded,
            streams_opened=self.streams,
        )

    def commit(self, event, **changes):
        options = {
            "connection_id": self.connection_id,
            "tls_group": "X25519MLKEM768",
            "policy_local": Policy.PREFER,
            "policy_peer": Policy.PREFER,
            "policy_effective": Policy.PREFER,
            **changes,
        }
        self.facts += self.trail.on_committed(replace(event, traffic=self.traffic), **options)

    def confirm(self, epoch):
        self.facts += self.trail.on_confirmed(EpochConfirmed(epoch, self.traffic))

    def close(self, *, clean=True):
        reason = Reason.CLOSED if clean else Reason.TRUNCATED
        self.facts += self.trail.on_closed(TunnelClosed(reason, clean, self.traffic))

    def stop(self):
        self.facts.append(stopped())


def ends():
    return End("gw-a", "gw-b", Role.CLIENT), End("gw-b", "gw-a", Role.SERVER)


def move(sender, receiver, count, *, arrives=None):
    arrives = count if arrives is None else arrives
    sender.sent += count
    receiver.received += arrives


def new_epoch(client, server, number, *, in_flight=0, **options):
    """The client commits, data of the server's old epoch arrives, the server's switch follows."""
    client.commit(committed(number, confirmed=False, **options))
    server.sent += in_flight
    server.commit(committed(number, **options))
    client.received += in_flight
    client.confirm(number)


# Disks ------------------------------------------------------------------------------------------


class Disk:
    """Opens real files that can be made to fail.

    Attributes:
        room: bytes that may still be written, None for no limit.
        error: number of the error every write ends with, None for none.
        sync_error: the same for syncs.
        frozen: set to let writes through, cleared to make them hang.
    """

    def __init__(self):
        self.room = None
        self.error = None
        self.sync_error = None
        self.truncate_error = None
        self.syncs = 0
        self.frozen = threading.Event()
        self.frozen.set()

    def __call__(self, path):
        return _File(self, path)


class _File(DiskFile):
    def __init__(self, disk, path):
        if disk.error is not None:
            raise OSError(disk.error, "injected")
        super().__init__(path)
        self.disk = disk

    def append(self, data):
        self.disk.frozen.wait()
        if self.disk.error is not None:
            raise OSError(self.disk.error, "injected")
        if self.disk.room is not None and len(data) > self.disk.room:
            super().append(data[: self.disk.room])
            self.disk.room = 0
            raise OSError(errno.ENOSPC, "injected")
        if self.disk.room is not None:
            self.disk.room -= len(data)
        super().append(data)

    def truncate(self, size_bytes):
        if self.disk.truncate_error is not None:
            raise OSError(self.disk.truncate_error, "injected")
        super().truncate(size_bytes)

    def sync(self):
        self.disk.syncs += 1
        if self.disk.sync_error is not None:
            raise OSError(self.disk.sync_error, "injected")
        super().sync()


class Faults:
    """Collects what on_failure is called with, and lets a test wait for it."""

    def __init__(self):
        self.seen = []
        self.called = threading.Event()

    def __call__(self, fault):
        self.seen.append(fault)
        self.called.set()


IDENTITY = LogIdentity(node="gw-a", version="0.1.0", random_bytes=bytes)


def make_writer(path, **options):
    options.setdefault("on_failure", Faults())
    options.setdefault("retry_s", 0.001)
    return AuditWriter(path, options.pop("identity", IDENTITY), **options)
