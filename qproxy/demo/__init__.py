"""`qproxy demo`: real processes on loopback, real traffic, a cut quantum link, and a verdict.

settings    how much, how often, how long at most
pattern     data that both ends can make from a number, for byte-for-byte checks
service     the service behind the far gateway, a process of its own
workdir     certificates and YAML files
children    the child processes and their logs
facts       what a gateway's log says, line by line                      (pure)
load        bulk transfers and short connections, every byte verified
heartbeat   one long-lived stream from first to last
record      everything that was measured                                 (pure)
story       the order of events
verdict     what was not as it should be                                 (pure)
report      the table and the JSON document                              (pure)
"""
