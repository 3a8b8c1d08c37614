"""``qproxy kme-sim``: KMEs, and the simulated quantum network between them.

``physics``     decoy-state BB84, an eavesdropper, a satellite's pass: numbers in, numbers out
``production``  what a span makes, by its kind
``span``        a quantum link between two nodes: what disturbs it, and the key stored at its ends
``relay``       how a key travels over trusted nodes under one-time pads
``routing``     paths through the network
``route``       how two KMEs get keys in common, over one of several paths
``store``       keys a master SAE took and the slave SAE has not yet
``events``      everything that can happen, and how it is written down
``network``     all of that as one thing: gives keys, lets events happen, tells how things stand
``timetable``   events that happen by themselves
``build``       the network that a configuration describes
``api``         ETSI GS QKD 014 v1.1.1, from a request to an answer
``control``     the control interface, from a request to an answer
``server``      sockets and TLS around them

Everything but ``server`` is pure: time and randomness are passed in. ``events``, ``routing`` and
``physics`` are leaves that the configuration imports.

No photon is involved and nothing here says so otherwise: every status carries ``"simulated":
true`` in ``status_extension``, every key container in ``key_container_extension``. Keys come
from the operating system's random number generator. All KMEs live in one process, so what they
share is shared by a dictionary; nothing about the security of a real network follows from it.
docs/simulation.md says what is modelled and what is left out.
"""
