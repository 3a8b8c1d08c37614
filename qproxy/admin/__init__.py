"""What an operator, a scraper and a load balancer ask a running gateway; never on the data path.

``snapshot`` reads the runtime's objects once into frozen values; everything else is a pure function
of those: ``assess`` says whether the gateway is ready and what is wrong, ``document`` writes the
``/status`` JSON, ``metrics`` the Prometheus families (``peer_metrics`` those of peers,
``edge_metrics`` those of listeners and services), ``text`` what ``qproxy status`` prints.
``server`` answers HTTP with them. No counter is kept twice: the runtime counts, a scrape reads.
"""
