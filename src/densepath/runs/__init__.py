"""Run folders: configuration, checkpoints, metrics; progress, signals, and lost processes."""
