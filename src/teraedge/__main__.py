"""Lets ``python -m teraedge`` stand for the ``teraedge`` command."""

import sys

from teraedge.cli import main

if __name__ == "__main__":  # doctest collection imports this file too
    sys.exit(main())
