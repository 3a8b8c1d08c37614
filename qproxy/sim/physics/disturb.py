"""What an eavesdropper who measures does to the error rate."""

from __future__ import annotations


def intercepted(error: float, fraction: float) -> float:
    """Error rate of photons of which a fraction was measured and sent anew.

    The eavesdropper measures each in a basis chosen at random. In the right one (half the time)
    she sends on what she saw; in the wrong one the sifted bit is a coin toss. So the error of
    those is ``error / 2 + 1 / 4``: a quarter from the attack, where there was none before.

    Args:
        error: without her, 0 to 0.5. For Ma et al. it is e_d.
        fraction: part of the pulses, 0 to 1.

    Returns:
        The error rate with her.
    """
    return (1 - fraction) * error + fraction * (error / 2 + 0.25)
