"""Detectors of glands and cells."""
