"""The trio side: sockets, tasks, signals. Drives the pure core and decides nothing about it.

``gateway`` builds everything from a configuration and runs it; ``peer`` keeps tunnels to one peer
up; ``tunnel`` drives one :class:`~qproxy.tunnel.connection.Connection` over one TCP connection;
``relay`` joins one stream to one local connection; ``qkd`` keeps keys in stock and watches the
link; ``epoch_driver`` answers the core's wish for new epochs.
"""
