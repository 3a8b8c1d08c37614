"""What is known of the quantum link, its keys and the policy about them. Pure: no I/O, no clocks.

``health`` tells whether the link can be relied on, ``stock`` holds the keys drawn ahead of need,
``spent`` remembers the key IDs that may never be used again, ``combine`` makes one link of several
sources, and ``policy`` decides from all of that, and from what both ends demand, in which mode the
next epoch is offered. ``now`` is an argument everywhere: seconds, as a float, of the caller's
monotonic clock.
"""
