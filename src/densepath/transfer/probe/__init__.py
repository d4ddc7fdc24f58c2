"""The linear pixel probe."""
