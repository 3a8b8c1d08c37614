"""What the optics of a simulated quantum link make of it: numbers in, numbers out.

``bb84``       secret key rate and QBER of decoy-state BB84
``disturb``    what misalignment and an eavesdropper do to the error rate
``satellite``  how loss changes during a pass

No clocks, no randomness, no configuration. What is modelled, what is approximated and what is
left out stands in docs/simulation.md.
"""
