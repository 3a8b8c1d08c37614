"""`qproxy reload`: check a configuration, then have its running gateway load its files again."""

from __future__ import annotations

import argparse
import datetime as dt
import signal

from qproxy.cli.output import ExitCode, print_config_error, print_error, print_warning
from qproxy.cli.preflight import inspect_gateway
from qproxy.config.reader import load_gateway_config
from qproxy.runtime.pid_file import PidFileError, signal_gateway


def reload_command(options: argparse.Namespace) -> ExitCode:
    """Signal the gateway; 78 where the configuration is broken, 1 where no gateway runs with it."""
    config = load_gateway_config(options.config)
    findings = inspect_gateway(config, dt.datetime.now(dt.UTC))
    for message, hint in findings.warnings:
        print_warning(message, hint)
    for error in findings.errors:
        print_config_error(error)
    if findings.errors:
        return ExitCode.CONFIG
    path = config.node.pid_file
    if path is None:
        print_error(
            f"{options.config} has no node.pid_file",
            "add one and restart the gateway, or send SIGHUP to its process yourself",
        )
        return ExitCode.FAILED
    try:
        pid = signal_gateway(path, signal.SIGHUP)
    except PidFileError as error:
        print_error(str(error), error.hint)
        return ExitCode.FAILED
    print(f"asked process {pid}; its log says 'reloaded', or 'reload_failed' and why")
    return ExitCode.DONE
