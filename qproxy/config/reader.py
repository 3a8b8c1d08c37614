"""From a file to a configuration, or to everything that is wrong with the file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import yaml

from qproxy.config.document import read_document
from qproxy.config.model import GatewayConfig, KmeSimConfig
from qproxy.config.schema import GATEWAY, KME_SIM, KmeSimFile
from qproxy.config.sections import Section
from qproxy.config.walk import INVALID, Walk
from qproxy.errors import ConfigError


class ConfigFileError(ConfigError):
    """Everything that is wrong with one file; itself the first of it.

    Attributes:
        errors: Each fault, in the order of the file; at least one.
    """

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        first = errors[0]
        super().__init__(
            first.message, file=first.file, line=first.line, key=first.key, hint=first.hint
        )
        self.errors = tuple(errors)

    def __str__(self) -> str:
        more = len(self.errors) - 1
        return super().__str__() + (f" (and {more} more)" if more else "")


def load_gateway_config(path: Path) -> GatewayConfig:
    """Read the file of `qproxy run`.

    Beside the file itself only metadata of the files it names is read, and the form of a
    pre-shared key; certificates are parsed where they are used.

    Raises:
        ConfigFileError: Everything that is wrong with the file.
        ConfigError: It could not be read at all.
    """
    return cast("GatewayConfig", _load(path, GATEWAY))


def load_kme_sim_config(path: Path) -> KmeSimConfig:
    """Read the file of `qproxy kme-sim`.

    Raises:
        ConfigFileError: Everything that is wrong with the file.
        ConfigError: It could not be read at all.
    """
    file = cast("KmeSimFile", _load(path, KME_SIM))
    return dataclasses.replace(file.kme_sim, log=file.log)


def load_any_config(path: Path) -> GatewayConfig | KmeSimConfig:
    """Read either kind of file, told apart by the key `kme_sim`.

    Raises:
        ConfigFileError: Everything that is wrong with the file.
        ConfigError: It could not be read at all.
    """
    root = read_document(path)
    entries = root.value if isinstance(root, yaml.MappingNode) else ()
    is_sim = any(key.value == "kme_sim" for key, _ in entries)
    return load_kme_sim_config(path) if is_sim else load_gateway_config(path)


def _load(path: Path, section: Section) -> object:
    root = read_document(path)
    file = path.absolute()
    walk = Walk(file=path, base=file.parent)
    result = section.read(walk, root, ())
    if walk.errors:
        # In the order of the file; what is missing altogether has no line and comes last.
        raise ConfigFileError(sorted(walk.errors, key=lambda error: error.line or sys.maxsize))
    if result is INVALID:
        raise ConfigError("expected a configuration, got something else", file=path)
    return result
