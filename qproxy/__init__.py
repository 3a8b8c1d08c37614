"""qproxy: a pair of gateways that put a quantum-safe link under TCP services."""

__version__ = "0.1.0"
