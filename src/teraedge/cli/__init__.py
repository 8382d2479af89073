"""The ``teraedge`` command: one file per subcommand, and here how it starts and how it fails.

Nothing in this package imports NumPy, SciPy or numba before a command needs them, so that
``teraedge --help`` answers at once.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from teraedge.errors import TeraedgeError

__all__ = ["main"]

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        0: done (and PASSED, where something was checked). 1: FAILED, or the reader of our output
        went away. 2: bad input, told in one line on stderr. 130: interrupted.

    Raises
    ------
    Exception
        Whatever is a bug in teraedge, so that its traceback is seen.
    """
    import typer

    from teraedge.cli.app import app

    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not Typer's own error panels: an error is one line, whoever raises it.
        status = app(given or ["--help"], prog_name="teraedge", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return FAILED
    except (TeraedgeError, OSError, MemoryError) as error:
        return _fail(_message(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error, of Typer or of Click below it
            raise
        return _fail(_usage(error))
    return status if isinstance(status, int) else 0


def _fail(message: str) -> int:
    from teraedge.cli.console import error_line

    error_line(message)
    return BAD_INPUT


def _message(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory ({error or 'no more to give'}); try fewer samples"
    if isinstance(error, OSError) and not isinstance(error, TeraedgeError):
        reason = error.strerror or str(error) or type(error).__name__
        return f"{error.filename}: {reason}" if error.filename else reason
    return str(error)


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "teraedge"
    message = error.format_message().rstrip(".").replace("Value error, ", "")  # pydantic's words
    return f"{message} (see {path} --help)"


def _forget_stdout() -> None:
    """Let the interpreter flush what is left into nothing, without a complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
