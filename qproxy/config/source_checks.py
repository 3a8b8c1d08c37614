"""What the keys of a key source must be to each other: KMEs, and what we show them."""

from __future__ import annotations

from qproxy.config.model import (
    Etsi014KmeConfig,
    Etsi014SourceConfig,
    KeyRequestMethod,
    SkipSourceConfig,
)
from qproxy.config.walk import KeyPath, Report


def check_etsi_014(source: Etsi014SourceConfig, path: KeyPath, report: Report) -> None:
    """Every KME can be reached: it has a URL, an authority and a certificate of ours."""
    if source.kmes and source.url is not None:
        report((*path, "url"), "expected no url beside kmes, got one", "each KME has its own url")
    if source.kmes and source.server_name is not None:
        report(
            (*path, "server_name"),
            "expected no server_name beside kmes, got one",
            "each KME has its own server_name",
        )
    if not source.kmes and source.url is None:
        report((*path, "url"), "expected a URL, got nothing", "add this key, or several kmes")
    _check_client(source, path, report)
    for name, kme in source.kmes.items():
        _check_client(kme, (*path, "kmes", name), report)
    # What every KME gives for itself need not be given for all of them.
    sections: list[tuple[KeyPath, Etsi014SourceConfig | Etsi014KmeConfig]]
    sections = [((*path, "kmes", name), kme) for name, kme in source.kmes.items()]
    for where, section in sections or [(path, source)]:
        if section.ca is None and source.ca is None:
            report((*where, "ca"), "expected a PEM file, got nothing", "add this key")
        if not _has_client(section) and not _has_client(source):
            report(
                (*where, "certificate"),
                "expected certificate and private_key, or pkcs12, got neither",
                "a KME knows us by our certificate",
            )
    if source.max_kme_retry_s < source.kme_retry_s:
        report(
            (*path, "max_kme_retry_s"),
            f"expected at least kme_retry_s ({source.kme_retry_s:g}), "
            f"got {source.max_kme_retry_s:g}",
            None,
        )
    if source.method is KeyRequestMethod.GET:
        for key in ("additional_slave_sae_ids", "extension_mandatory", "extension_optional"):
            if getattr(source, key) is not None:
                report(
                    (*path, key),
                    "expected nothing with method get, got a value",
                    "ETSI GS QKD 014 has this for POST only; set method: auto or post",
                )


def check_skip(source: SkipSourceConfig, path: KeyPath, report: Report) -> None:
    """The provider is shown a certificate."""
    _check_client(source, path, report)
    if not _has_client(source):
        report(
            (*path, "certificate"),
            "expected certificate and private_key, or pkcs12, got neither",
            "a key provider knows us by our certificate",
        )


_ClientSection = Etsi014SourceConfig | Etsi014KmeConfig | SkipSourceConfig


def _has_client(section: _ClientSection) -> bool:
    return any((section.certificate, section.private_key, section.pkcs12))


def _check_client(section: _ClientSection, path: KeyPath, report: Report) -> None:
    """A certificate comes with its key, or both in one PKCS #12 file."""
    for given, missing in (("certificate", "private_key"), ("private_key", "certificate")):
        if getattr(section, given) is not None and getattr(section, missing) is None:
            report(
                (*path, missing),
                f"expected a PEM file beside {given}, got nothing",
                "give both, or a pkcs12 file in place of them",
            )
        if getattr(section, given) is not None and section.pkcs12 is not None:
            report(
                (*path, given),
                f"expected no {given} beside pkcs12, got one",
                "remove one of the two",
            )
    if section.pkcs12_password_file is not None and section.pkcs12 is None:
        report(
            (*path, "pkcs12"),
            "expected a PKCS #12 file beside pkcs12_password_file, got nothing",
            "add this key, or remove the password file",
        )
