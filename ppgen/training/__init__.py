"""The training loop: batches, progress, validation, early stopping, checkpoints, and the result of a run."""
