"""The words for what a tunnel runs under, the same in config, logs, metrics, docs and bytes."""

from __future__ import annotations

import enum


class Mode(enum.StrEnum):
    """What an epoch's keys are made from.

    X25519MLKEM768 (in the TLS handshake) and a fresh ML-KEM secret are in both.
    """

    CLASSICAL_ONLY = "classical-only"
    """No QKD key in the mix. X25519 and ML-KEM still are."""
    HYBRID = "hybrid"
    """ML-KEM and at least one QKD key."""


class Policy(enum.StrEnum):
    """What a gateway demands of the quantum link towards one peer."""

    OFF = "off"
    """Never asks for a QKD key; goes along with a stricter peer."""
    PREFER = "prefer"
    """Hybrid where it can be had; falls back audibly and climbs back by itself."""
    REQUIRE = "require"
    """No QKD key, no traffic."""


_STRICTNESS = {Policy.OFF: 0, Policy.PREFER: 1, Policy.REQUIRE: 2}


def stricter(a: Policy, b: Policy) -> Policy:
    """The policy that holds where the two ends of a tunnel differ."""
    return a if _STRICTNESS[a] >= _STRICTNESS[b] else b


class KemAlgorithm(enum.StrEnum):
    """ML-KEM parameter sets (FIPS 203) an epoch may use."""

    ML_KEM_768 = "ml-kem-768"
    ML_KEM_1024 = "ml-kem-1024"


class Aead(enum.StrEnum):
    """Record protection (RFC 9846 §5.2): 32-byte key, 12-byte nonce, 16-byte tag in both."""

    AES_256_GCM = "aes-256-gcm"
    CHACHA20_POLY1305 = "chacha20-poly1305"


class KemProviderChoice(enum.StrEnum):
    """Which library computes ML-KEM (config key ``kem_provider``)."""

    AUTO = "auto"
    LIBOQS = "liboqs"
    OPENSSL = "openssl"


class ClientAuth(enum.StrEnum):
    """Whether a TLS server asks for a client certificate."""

    NONE = "none"
    OPTIONAL = "optional"
    """None is fine, a bad one is not."""
    REQUIRED = "required"
