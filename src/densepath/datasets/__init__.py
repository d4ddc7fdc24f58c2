"""Data sets as their authors ship them, converted to our layouts."""
