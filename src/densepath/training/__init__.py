"""Training on Lightning: optimizers, the loop, checkpoints and resuming, run folders, recipes, pre-training, export."""
