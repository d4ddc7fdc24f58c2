"""The training loop and what it trains: optimizers, saving and resuming, recipes, pre-training, export."""
