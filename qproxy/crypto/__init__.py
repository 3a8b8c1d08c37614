"""ML-KEM, the combiner and key schedule, record protection, and every label. Pure."""
