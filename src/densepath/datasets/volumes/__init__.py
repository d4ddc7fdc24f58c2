"""Data sets of volumes as their authors ship them, converted to a store."""
