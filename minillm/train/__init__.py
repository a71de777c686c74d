"""Training: loss, optimizers, schedules, clipping, precision, checkpoints and the loop that holds them together."""
