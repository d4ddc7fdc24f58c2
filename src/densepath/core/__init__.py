"""Tensors only: geometry, randomness, regions, momentum, queues, losses. Imports nothing else of densepath."""
