"""The epoll load generator: a service behind the far proxy, a client before the near one.

    python -m bench.traffic service         prints its port, then serves until ended
    python -m bench.traffic client          reads one JSON request a line, answers with one

It shares the machine with the proxies it measures, so it is made to cost next to nothing: bare
epoll, one thread, non-blocking sockets. Bulk bytes leave from one buffer that stays in the cache
and are received with MSG_TRUNC, which has the kernel drop them without a copy; whether they are the
right ones is found in passes of their own, which are not timed, by the same code without that flag.
Small messages are compared on every one. Nothing but the standard library is imported.

=====================================  ===========================================================
:mod:`bench.traffic.wire`              what goes over a connection
:mod:`bench.traffic.mover`             bulk bytes of one connection, in and out
:mod:`bench.traffic.service`           the service
:mod:`bench.traffic.client`            the client: what it is told, line by line
:mod:`bench.traffic.flows`             the client's connections, and bulk over all of them
:mod:`bench.traffic.messages`          small messages: one at a time, or as fast as they return
:mod:`bench.traffic.paced`             small messages at intended times, whatever comes back
:mod:`bench.traffic.arrivals`          new connections, one after the other or many at once
=====================================  ===========================================================
"""
