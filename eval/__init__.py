"""Tasks, verifier, sampling, log-probabilities, pass@k with intervals, and reports."""
