"""``python -m densepath`` is the command line."""

from densepath.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
