"""How good: tasks, verifier, sampling, log-probabilities, pass@k with intervals, reports."""
