"""Several worker processes, and the one that starts them, watches them and speaks for them.

Theory of operation. With ``node.workers`` above 1 the process that ``qproxy run`` starts is the
supervisor. It carries no data and keeps no key: it reads the configuration, reserves the addresses,
starts the workers and answers the operator. Each worker is this program started anew (never a fork)
and runs one whole :class:`~qproxy.runtime.gateway.Gateway` with its share of every limit: its own
tunnels, streams, keys and audit trail. Workers know nothing of each other. What ends one ends its
streams and nothing else, and it is started again, after pauses that grow while it keeps dying.

Between the supervisor and each worker there is one socket pair, inherited and in nobody else's
hands (``channel``). Applications reach workers by SO_REUSEPORT: the kernel spreads their
connections. Tunnels are few and live long, and a hash would often give two of them to one worker
and none to the other, so it is the supervisor that accepts tunnels from peers and hands each to the
worker with the fewest (``placing``), before a byte of it was read.

``cpus``, ``backoff``, ``share``, ``placing`` and ``merge`` are pure; ``ports``, ``channel``,
``process`` and ``slot`` do one thing each; ``supervisor`` holds them together, and ``worker`` is
the other end.
"""
