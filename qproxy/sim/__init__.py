"""``qproxy kme-sim``: two KMEs over one simulated quantum link.

``link``     how much secret key the link has made by a given time, and how it is disturbed
``store``    keys a master SAE took and the slave SAE has not yet
``api``      ETSI GS QKD 014 v1.1.1, from a request to an answer
``control``  the control interface, from a request to an answer
``server``   sockets and TLS around them

Everything but ``server`` is pure: time and randomness are passed in.

No photon is involved and nothing here says so otherwise: every status carries ``"simulated":
true`` in ``status_extension``, every key container in ``key_container_extension``. Keys come
from the operating system's random number generator. Both KMEs live in one process, so what they
share is shared by a dictionary; nothing about the security of a real link follows from it.
"""
