"""Where QKD keys come from: one protocol, :class:`~qproxy.sources.base.KeySource`, and its makers.

``base``          what every source promises
``etsi014_wire``  the JSON of ETSI GS QKD 014, pure; the simulator speaks it through the same codec
``etsi014``       a KME behind ETSI GS QKD 014, over mutual TLS
``skip_wire``     the JSON and URLs of SKIP (draft-cisco-skip), pure
``skip``          a key provider behind SKIP
``file``          a directory of keys written ahead on both sides, for trials

A source fetches and checks. Which keys are asked for, when, and what follows from a failure is
policy, and policy lives elsewhere.
"""
