"""Benchmarks of qproxy beside what would be used in its place, on the same work in one run.

    python -m bench                     runs all benchmarks; records and reports in bench/results/
    python -m bench throughput          runs one; its page on stdout, JSON and reports beside it
    python -m bench report FILE ...     renders stored records again

docs/benchmarks.md says what is compared, how, and what the numbers mean.

How a run is made, and why:

* Only ratios from one run mean anything, so every run measures all peers, in rounds: A B C, A B C,
  and so on. A ratio is taken within a round, between neighbours in time; the result is the median
  of the rounds' ratios with the smallest and the largest beside it.
* A pair of proxies is started afresh in each round and ended after it. Nothing else of ours runs
  beside the one that is measured, and the spread holds what differs from start to start.
* Every row does the same work through the same load generator: separate processes for source and
  sink, made to leave the proxies as much of the machine as they can.
* Before a pair's throughput is timed, random bytes have gone every way and all were compared; small
  messages are compared on every one.

======================  ==========================================================================
:mod:`bench.pairs`      one class per kind of proxy: how to configure, start and ask it its version
:mod:`bench.traffic`    the load generator, run as programs; :mod:`bench.load` is an older one
:mod:`bench.lines`      how a load generator's client is told what to do, line by line
:mod:`bench.path`       a path with delay and rate, for the load generator :mod:`bench.flow`
:mod:`bench.children`   processes: started, waited for with a deadline, ended by process ID
:mod:`bench.rounds`     one pair up and running with its load generators; interleaved rounds
:mod:`bench.delayed`    the same over delayed paths, in a :mod:`bench.namespace`
:mod:`bench.long_paths` what the benchmarks that do so share
:mod:`bench.stats`      medians, spread, ratios, and whether a ratio means anything
:mod:`bench.record`     what a run leaves behind, as JSON; :mod:`bench.store` reads it back
:mod:`bench.study`      the same for runs held against goals of their own, without other programs
:mod:`bench.goals`      the goals, and verdicts on them from records
:mod:`bench.pages`      reports of records, as Markdown and as HTML with :mod:`bench.plots`
:mod:`bench.catalogue`  every benchmark
======================  ==========================================================================
"""
