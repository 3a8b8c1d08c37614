"""``qproxy kme check``: what a pair of KMEs makes of ETSI GS QKD 014 v1.1.1.

``ends``     which KME, as which SAE, out of one or two configurations
``facts``    what is kept of an answer: enough to judge it, and no key
``plan``     which requests are made for new keys, and how many keys that takes at worst
``probe``    a whole run; with ``side``, ``fetch`` and ``tls_probe`` all that does I/O
``evidence`` what a run saw with one end as master
``verdict``  what a check can say, and what qproxy will do about it
``checks``   the table of checks, each with its clause; the judges in ``judge_link``,
             ``judge_keys`` and ``judge_errors`` are pure functions from evidence to a verdict
``hand_over``  what two sites tell each other that cannot be reached at once
``report``   the outcome as lines, and as JSON

A check run is a probe that gathers facts, then a table that judges them. The facts hold neither
a key nor anything else a KME wrote in words of its own: a KME that mixes up its fields could put
a key into any of them.

Clause and table numbers are those of ETSI GS QKD 014 v1.1.1 (2019-02).
"""
