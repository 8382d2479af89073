"""What the commands write to: tables on stdout; errors, logs and progress on stderr."""

import json
import logging
import sys
from functools import cache
from typing import Any

from rich.console import Console
from rich.text import Text


@cache
def out() -> Console:
    """Return the console of answers: stdout."""
    return Console(highlight=False)


@cache
def err() -> Console:
    """Return the console of everything else: stderr."""
    return Console(stderr=True, highlight=False)


def error_line(message: str) -> None:
    """Write ``error: ...`` on stderr, in one line whatever the message and the terminal."""
    line = Text.assemble(("error:", "bold red"), " ", " ".join(message.split()))
    err().print(line, soft_wrap=True)


def write_json(value: Any) -> None:
    """Write one JSON object, in one line, to stdout."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def log_to_stderr() -> None:
    """Show what teraedge logs at INFO and above."""
    from rich.logging import RichHandler

    # The same console as the progress bars, which make room for its lines.
    handler = RichHandler(console=err(), show_path=False, show_level=False, log_time_format="%X")
    logger = logging.getLogger("teraedge")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
