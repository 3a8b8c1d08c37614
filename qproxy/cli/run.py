"""`qproxy run`, `qproxy kme-sim` and `qproxy demo`: read what to do, then hand over."""

from __future__ import annotations

import argparse
import datetime as dt
import signal
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from qproxy.cli.output import ExitCode, print_error
from qproxy.cli.preflight import inspect_gateway
from qproxy.config.model import GatewayConfig
from qproxy.config.reader import load_gateway_config, load_kme_sim_config
from qproxy.log import configure_logging, get_logger
from qproxy.supervisor.cpus import worker_count


def run_command(options: argparse.Namespace) -> ExitCode:
    """Run a gateway until it is told to stop."""
    config = load_gateway_config(options.config)
    configure_logging(config.log)
    started = _OnStart(lambda: _log_findings(config))
    workers = worker_count(config.node.workers)
    if workers > 1:
        return _run_workers(config, workers, started)
    from qproxy.runtime.gateway import run_gateway  # noqa: PLC0415 - not before the file is right
    from qproxy.runtime.loop import run, spare_garbage_collection  # noqa: PLC0415 - likewise

    spare_garbage_collection()
    run(partial(run_gateway, config, task_status=started))
    return ExitCode.DONE


def _run_workers(config: GatewayConfig, workers: int, started: _OnStart) -> ExitCode:
    from qproxy.supervisor.slot import WorkerFailedError  # noqa: PLC0415 - most run no workers
    from qproxy.supervisor.supervisor import run_supervisor  # noqa: PLC0415 - most run no workers

    try:
        trio.run(partial(run_supervisor, config, workers, task_status=started))
    except WorkerFailedError as error:
        if not error.told:
            print_error(str(error), "was it killed for want of memory?")
        return ExitCode.CONFIG if error.exit_code == ExitCode.CONFIG else ExitCode.FAILED
    return ExitCode.DONE


def worker_command(options: argparse.Namespace) -> int:
    """Be a worker of a gateway; only a supervisor calls this, with a channel to be inherited."""
    from qproxy.runtime.audit import AuditFailureError  # noqa: PLC0415 - needed by workers alone
    from qproxy.runtime.loop import run, spare_garbage_collection  # noqa: PLC0415 - likewise
    from qproxy.supervisor.slot import AUDIT_EXIT_CODE  # noqa: PLC0415 - needed by workers alone
    from qproxy.supervisor.worker import run_worker  # noqa: PLC0415 - needed by workers alone

    code = int(ExitCode.DONE)
    spare_garbage_collection()
    try:
        run(partial(run_worker, options.channel))
    except* AuditFailureError as group:
        for error in group.exceptions:
            print_error(str(error), getattr(error, "hint", None))
        code = AUDIT_EXIT_CODE
    return code


def kme_sim_command(options: argparse.Namespace) -> ExitCode:
    """Run the simulated KMEs until they are told to stop."""
    config = load_kme_sim_config(options.config)
    configure_logging(config.log)
    from qproxy.sim.server import run_kme_sim  # noqa: PLC0415 - not before the file is right

    trio.run(_until_sigterm, partial(run_kme_sim, config))
    return ExitCode.DONE


class _OnStart:
    """A task status that calls something when the task says that it has started."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def started(self, _value: object = None) -> None:
        """What trio's nursery would be told."""
        self._action()


def _log_findings(config: GatewayConfig) -> None:
    """Say what `qproxy check` would: at a restart in the night nobody runs it first.

    None of it keeps the gateway from starting: a certificate or a revocation list that is out of
    date may be replaced while it runs.
    """
    log = get_logger(__name__)
    findings = inspect_gateway(config, dt.datetime.now(dt.UTC))
    for message, hint in findings.warnings:
        log.warning("configuration_warning", detail=message, hint=hint)
    for error in findings.errors:
        log.error("configuration_problem", key=error.key, detail=str(error), hint=error.hint)


async def _until_sigterm(main: Callable[[], Awaitable[None]]) -> None:
    """Run something that has nothing to drain until it ends or SIGTERM comes."""

    async def run_and_stop() -> None:
        await main()
        nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_and_stop)
            async for _ in signals:
                nursery.cancel_scope.cancel()


def demo_command(options: argparse.Namespace) -> int:
    """Run the demonstration; its result is the exit code."""
    from qproxy.demo.main import run_demo  # noqa: PLC0415 - needed by no other command

    return int(run_demo(options))
