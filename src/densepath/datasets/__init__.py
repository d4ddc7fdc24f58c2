"""Converts data sets as published by their authors to our layouts."""
