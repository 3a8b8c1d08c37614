"""The audit trail: which bytes ran under which keys, provable afterwards (docs/audit.md).

``facts``    what is recorded, one frozen dataclass for each kind of record, and their check
``record``   records, their canonical JSON and the hash chain that runs through them
``trail``    from the events of one tunnel to facts
``tail``     reading the files, and the end that a new run goes on from
``storage``  writing them: appending, rotating, going on after a crash
``writer``   the thread that writes, behind a queue that never makes the data path wait
``verify``   whether a file, and what was rotated out of it, is whole
``compare``  whether the logs of two gateways tell the same story

``facts``, ``record``, ``trail``, ``verify`` and ``compare`` are pure: no files, no clocks.
"""
