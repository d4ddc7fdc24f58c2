"""Procedural images, whose truth is known exactly."""
