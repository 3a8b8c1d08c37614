"""Where QKD keys come from: one protocol, :class:`~qproxy.sources.base.KeySource`, and its makers.

``base``          what every source promises
``etsi014_wire``  the JSON of ETSI GS QKD 014, pure; the simulator speaks it through the same codec
``etsi014_errors`` what it means when a KME does not answer 200, pure
``etsi014``       a KME behind ETSI GS QKD 014, over mutual TLS
``failover``      several KMEs in order of preference behind one source
``recent``        which keys came lately, to notice one that comes again
``skip_wire``     the JSON and URLs of SKIP (draft-cisco-skip), pure
``skip``          a key provider behind SKIP
``file``          a directory of keys written ahead on both sides, for trials

A source fetches and checks. Which keys are asked for, when, and what follows from a failure is
policy, and policy lives elsewhere.
"""
