"""How a model learns: optimizer, schedule, loop, checkpoints, reports."""
