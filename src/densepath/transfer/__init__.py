"""Downstream tasks that use pre-trained weights: one file per task, with its parts beside it."""
