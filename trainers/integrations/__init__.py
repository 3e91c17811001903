"""Surgery inside the trainers of others: TRL and verl."""
