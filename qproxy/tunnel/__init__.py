"""The tunnel protocol, sans-IO. Start at :class:`qproxy.tunnel.connection.Connection`."""
