"""Downstream tasks that use pre-trained weights: one folder per task."""
