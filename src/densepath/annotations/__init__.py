"""Annotations of images: classes, label maps, objects."""
