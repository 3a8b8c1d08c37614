"""Sockets under trio: endpoints that try first and wait after, and small HTTP on top of them."""
