"""Tab-separated text of the Graph Challenge: ``row<TAB>column<TAB>value`` lines with 1-based ids.

Reading is strict and runs at the speed of SciPy's Matrix Market parser, which is lenient: it stops
at the first character that is not part of a number. So the *shape* of every line, the line with
each digit turned into 0, is checked first. A block has thousands of lines for each shape, which
makes a regular expression cheap.
"""

import io
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
import scipy.io
from numpy.typing import NDArray

from teraedge.errors import FormatError

BLOCK = 1 << 20  # bytes of text parsed at once; larger blocks leave the cache and are slower
ROWS = 1 << 19  # lines of text made at once
MAX_ID = 2**31 - 1

_DIGITS_TO_0 = bytes.maketrans(b"123456789", b"000000000")
NUMBER = rb"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_IS_LINE = re.compile(rb"\d+\t\d+\t" + NUMBER).fullmatch
_IS_NUMBER = re.compile(NUMBER).fullmatch
_BANNER = b"%%%%MatrixMarket matrix coordinate real general\n%d %d %d\n"


class Columns(NamedTuple):
    """What the three columns of a file are, and the largest ids of the first two."""

    row: str
    column: str
    value: str
    rows: int
    columns: int


class Entries(NamedTuple):
    """One block of a file: 0-based ids, float64 values, and the number of its first line."""

    line: int
    rows: NDArray[Any]
    columns: NDArray[Any]
    values: NDArray[np.float64]


def read_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the text of a file in whole lines, each block with the number of its first line.

    Raises
    ------
    FormatError
        If the file cannot be read, is empty, or its last line has no end.
    """
    line, rest = 1, b""
    try:
        with path.open("rb") as file:
            while data := file.read(BLOCK):
                end = data.rfind(b"\n") + 1
                block, rest = rest + data[:end], data[end:] if end else rest + data
                if len(rest) > BLOCK:
                    break  # no text has such lines
                if end:
                    yield line, block.replace(b"\r\n", b"\n") if b"\r" in block else block
                    line += block.count(b"\n")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from None
    if rest:
        raise FormatError(f"{path}: line {line} has no end; the file is truncated or not text")
    if line == 1:
        raise FormatError(f"{path}: the file is empty; it must hold at least one line")


def read_entries(path: Path, columns: Columns) -> Iterator[Entries]:
    """Parse a file of three columns, block by block.

    Raises
    ------
    FormatError
        At the first line that is not two ids from 1 to the largest and a finite number.
    """
    for line, block in read_blocks(path):
        if not all(map(_IS_LINE, line_shapes(block))):
            _refuse(path, columns, line, block)
        banner = _BANNER % (columns.rows, columns.columns, block.count(b"\n"))
        try:
            matrix = scipy.io.mmread(io.BytesIO(banner + block))
        except (ValueError, OverflowError):
            _refuse(path, columns, line, block)
        if not np.isfinite(matrix.data).all():
            _refuse(path, columns, line, block)
        yield Entries(line, matrix.row, matrix.col, matrix.data)


def line_shapes(block: bytes) -> set[bytes]:
    """Return the different lines of a text that ends with a newline, each digit turned into 0."""
    return set(block.translate(_DIGITS_TO_0)[:-1].split(b"\n"))


def _refuse(path: Path, columns: Columns, line: int, block: bytes) -> NoReturn:
    """Find the first wrong line and say what is wrong with it."""
    for number, text in enumerate(block[:-1].split(b"\n"), line):
        if reason := _wrong(text, columns):
            raise FormatError(f"{path}: line {number}: {reason}")
    raise FormatError(f"{path}: the lines from {line} on cannot be parsed")


def _wrong(text: bytes, columns: Columns) -> str | None:
    """Say what is wrong with a line, if anything is."""
    fields = text.split(b"\t")
    if len(fields) != 3:
        return (
            f"{len(fields)} column{'s' if len(fields) > 1 else ''} in {shown(text)}; a line is "
            f"{columns.row}<TAB>{columns.column}<TAB>{columns.value}"
        )
    pairs = zip(columns[:2], fields[:2], columns[3:], strict=True)
    for name, field, largest in pairs:
        if reason := wrong_id(field, name, largest):
            return reason
    if not _IS_NUMBER(fields[2]) or not math.isfinite(float(fields[2])):
        return f"{columns.value} {shown(fields[2])} is not a finite number"
    return None


def wrong_id(field: bytes, name: str, largest: int) -> str | None:
    """Say what is wrong with a 1-based id, if anything is."""
    if not field.isdigit():
        return f"{name} {shown(field)} is not a whole number from 1 to {largest}"
    if len(field) > 20 or not 1 <= int(field) <= largest:
        return f"{name} {shown(field)} is out of range; ids are 1-based, from 1 to {largest}"
    return None


def shown(text: bytes) -> str:
    """Return some of a file's text, safe for a message of one line."""
    return ascii(text[:40].decode("latin-1")) + ("..." if len(text) > 40 else "")


def write_entries(
    file: IO[bytes],
    rows: NDArray[Any],
    columns: NDArray[Any],
    values: NDArray[Any],
    largest: tuple[int, int],
) -> None:
    """Write lines of 0-based ids and values, in the order given.

    Parameters
    ----------
    file : binary file
    rows, columns : ndarray of int, shape (entries,)
    values : ndarray of bytes, shape (entries,) or (1,)
        Text of each value, or of all.
    largest : (int, int)
        One above the largest ids.
    """
    row_texts, column_texts = _id_texts(largest[0]), _id_texts(largest[1])
    ends = np.char.add(values, b"\n")
    record = [("row", row_texts.dtype), ("column", column_texts.dtype), ("value", ends.dtype)]
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        lines = np.empty(len(rows[part]), record)
        lines["row"] = row_texts[rows[part]]
        lines["column"] = column_texts[columns[part]]
        lines["value"] = ends if len(ends) == 1 else ends[part]
        # NumPy pads each field with zero bytes to a fixed width; text has none of its own.
        file.write(lines.tobytes().translate(None, b"\0"))


@lru_cache(maxsize=4)
def _id_texts(count: int) -> NDArray[np.bytes_]:
    """Return the 1-based text of ids 0 to count - 1, each with a tab."""
    ids = np.arange(1, count + 1).astype(f"S{len(str(count))}")
    return np.char.add(ids, b"\t")


def number_texts(values: NDArray[np.float32]) -> NDArray[np.bytes_]:
    """Return the text of float32 values; one text where all are equal.

    The text is C's ``%e``, the official form, where that reads back as the same float32, otherwise
    with as many digits as that takes.

    Examples
    --------
    >>> number_texts(np.array([0.0625, 1 / 3], np.float32))
    array([b'6.250000e-02', b'3.33333343e-01'], dtype='|S14')
    """
    bits = values.view(np.uint32)  # by bits, so that -0.0 is not taken for 0.0
    if (bits == bits[:1]).all():
        return _distinct_texts(values[:1])
    if len(np.unique(bits[:1000])) > 500:
        return _distinct_texts(values)  # hardly any are equal, so there is nothing to save
    distinct, where = np.unique(bits, return_inverse=True)
    return _distinct_texts(distinct.view(np.float32))[where]


def _distinct_texts(values: NDArray[np.float32]) -> NDArray[np.bytes_]:
    texts = np.empty(len(values), "S24")
    left = np.arange(len(values))
    for digits in (7, 9, 17):  # nine digits identify a float32, but for rounding twice
        stream = io.BytesIO()
        wide = values[left].astype(np.float64)
        scipy.io.mmwrite(stream, wide[:, None], precision=digits, symmetry="general")
        texts[left] = stream.getvalue().split(b"\n")[-len(left) - 1 : -1]
        with np.errstate(over="ignore"):
            back = scipy.io.mmread(io.BytesIO(stream.getvalue()))[:, 0].astype(np.float32)
        left = left[back != values[left]]
        if not len(left):
            break
    return texts.astype(f"S{np.char.str_len(texts).max()}")
