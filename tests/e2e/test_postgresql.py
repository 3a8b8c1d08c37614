"""A PostgreSQL client and server with a query load between them."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.pair import GatewayPair
from tests.e2e.processes import Program, poll, run
from tests.e2e.sockets import ReservedPort, host_and_port

CLIENTS = 8
TRANSACTIONS = 250  # of each client


def find_server() -> Path | None:
    """The directory of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


def _version(program: Path) -> int:
    return int(re.sub(r"\D.*", "", program.parents[1].name) or 0)


SERVER = find_server()


def reason_to_skip() -> str | None:
    if SERVER is None or not shutil.which("psql") or not shutil.which("pgbench"):
        return "PostgreSQL (initdb, psql, pgbench) is not installed"
    if os.geteuid() == 0:
        if shutil.which("runuser") is None:
            return "PostgreSQL does not run as root, and runuser is not installed"
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root, and there is no user postgres"
    return None


SKIP = reason_to_skip()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(SKIP is not None, reason=SKIP or "")]


@dataclass
class Database:
    """A server behind a pair of gateways: its direct address, and the way through them."""

    direct: str
    proxied: str
    pair: GatewayPair

    def command(self, program: str, *arguments: str, through: bool = True) -> str:
        host, port = host_and_port(self.proxied if through else self.direct)
        where = ["-h", host, "-p", str(port), "-U", "postgres"]
        done = run(program, *where, *arguments, deadline_s=300)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def query(self, sql: str, *, through: bool = True) -> str:
        return self.command("psql", "-XAtqc", sql, "postgres", through=through)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    assert SERVER is not None
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    # Not pytest's directory: the user postgres could not get into it.
    with tempfile.TemporaryDirectory(prefix="qproxy-e2e-") as name, ReservedPort() as port:
        directory = Path(name)
        if as_postgres:
            shutil.chown(directory, "postgres")
        arguments = ["-D", str(directory / "data"), "-U", "postgres", "-A", "trust", "--no-sync"]
        made = run(*as_postgres, SERVER / "initdb", *arguments, deadline_s=120)
        assert made.returncode == 0, made.stderr.decode()
        port.release()
        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-k", str(directory)]
        listen = ["-D", str(directory / "data"), "-p", str(host_and_port(port.address)[1])]
        with Program("postgres", [*as_postgres, SERVER / "postgres", *listen, *options]) as server:
            server.wait_for_line("ready to accept connections")
            with GatewayPair(
                tmp_path_factory.mktemp("postgresql"),
                listeners={"db": {}, "db-unix": {"wait_for_service": True}},
                services={
                    "db": port.address,
                    "db-unix": f"unix:{directory}/.s.PGSQL.{host_and_port(port.address)[1]}",
                },
                peer={"rekey": {"interval_s": 0.5}},
            ) as pair:
                yield Database(port.address, pair.address("db"), pair)


def test_a_query_load_ends_with_balanced_books(database: Database) -> None:
    database.command("pgbench", "-i", "-s", "1", "--quiet", "postgres")
    load = ["-c", str(CLIENTS), "-j", "2", "-t", str(TRANSACTIONS)]
    told = database.command("pgbench", *load, "postgres")
    total = CLIENTS * TRANSACTIONS
    assert f"number of transactions actually processed: {total}/{total}" in told
    assert "number of failed transactions: 0 " in told
    sums = "select (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)"
    through = database.query(sums)
    assert through == database.query(sums, through=False)
    assert through.strip().endswith(f"|{total}")
    balances = "select sum(abalance) from pgbench_accounts"
    assert database.query(balances).strip() == through.split("|")[0]


def test_a_new_connection_per_transaction_works(database: Database) -> None:
    select = ["-n", "-C", "-c", "4", "-j", "2", "-t", "50", "-f", "-"]
    host, port = host_and_port(database.proxied)
    where = ["-h", host, "-p", str(port), "-U", "postgres"]
    done = run("pgbench", *where, *select, "postgres", data=b"select 1;\n", deadline_s=120)
    assert done.returncode == 0, done.stderr.decode()
    assert b"number of transactions actually processed: 200/200" in done.stdout


def test_a_large_result_arrives_unchanged(database: Database) -> None:
    sql = "copy (select n, md5(n::text) from generate_series(1, 500000) n) to stdout"
    through = database.query(sql)
    assert len(through) > 15_000_000
    assert through == database.query(sql, through=False)


def test_a_client_reaches_the_servers_unix_socket(database: Database) -> None:
    host, port = host_and_port(database.pair.address("db-unix"))
    where = ["-h", host, "-p", str(port), "-U", "postgres"]
    done = run("psql", *where, "-XAtqc", "select inet_client_addr() is null", "postgres")
    assert (done.returncode, done.stdout.strip()) == (0, b"t"), done.stderr.decode()


def test_a_client_can_cancel_its_query(database: Database) -> None:
    host, port = host_and_port(database.proxied)
    sleep = ["-XAtqc", "select pg_sleep(3600)", "postgres"]
    with Program("psql", ["psql", "-h", host, "-p", str(port), "-U", "postgres", *sleep]) as psql:
        at_work = "select count(*) from pg_stat_activity where query = 'select pg_sleep(3600)'"
        active = f"{at_work} and state = 'active'"
        poll("the query runs", lambda: database.query(active).strip() == "1")
        # psql asks for it over a connection of its own, which sends 16 bytes and waits for FIN.
        psql.signal(signal.SIGINT)
        psql.wait_for_line("canceling statement due to user request")
        assert psql.wait_for_exit() == 1
    poll("the server forgets the query", lambda: database.query(at_work).strip() == "0")
