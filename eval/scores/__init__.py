"""Pass@k with intervals, problem by problem."""
