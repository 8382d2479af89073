"""Resizing of the MNIST images to the inputs of the Graph Challenge, in the Fourier domain.

The rule: the images stand side by side as one matrix X of 28 rows; fft2(X) is zero-padded to n
rows and n columns an image; a pixel is 1 where the absolute value of the inverse transform is
above half of its largest value over all images. The Nyquist row and column stay whole on the
negative side, so that the inverse transform is complex.

The two directions do not depend on each other, so the vertical one is a product with a small
matrix and only 28 long rows are transformed, not n. The horizontal transform is real but for the
Nyquist column, which repeats in every image. So for column j of an image and row r

    y[j, r] = sum_k V[r, k] x[k, j] + exp(-2 pi i 14 j / n) (V b)[r]

with x the real rows stretched without the Nyquist column, b the Nyquist column, and V the vertical
interpolation, whose imaginary part has rank one.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[float], None]

ROWS = 28
_COARSE = 32  # columns an image in each of the interleaved transforms; holds ROWS frequencies
_TILE = 1 << 17  # pixels worked on at a time: they stay in the L2 cache
_TASK = 250  # images a task
_STRIP = 32  # columns a product: small ones stay in the calling thread, which BLAS would leave


def binary_images(
    images: NDArray[np.uint8], side: int, progress: Progress | None = None
) -> NDArray[np.uint8]:
    """Resize images to side x side and threshold them, as the Graph Challenge did.

    Takes about 3.5 GB for the 60,000 images at side 256.

    Parameters
    ----------
    images : ndarray of uint8, shape (samples, 28, 28)
    side : int
        A multiple of 32.
    progress : callable, optional
        Called with the share of the work that is done, 0 to 1.

    Returns
    -------
    ndarray of uint8, shape (samples, side * side / 8)
        ``numpy.packbits`` of the features; the feature index is column * side + row.
    """
    report = progress or (lambda done: None)
    with ThreadPoolExecutor(_threads()) as pool:
        stretched, nyquist = _stretch(images, side, pool, _span(report, 0.0, 0.5))
        power = _Power(stretched, nyquist, side)
        tasks = [range(i, min(i + _TASK, len(images))) for i in range(0, len(images), _TASK)]

        peaks = pool.map(power.peak, tasks)
        threshold = max(_counted(peaks, len(tasks), _span(report, 0.5, 0.73))) / 4  # of squares

        bits = np.empty((len(images), side * side // 8), np.uint8)
        packed = pool.map(lambda task: power.pack(task, threshold, bits), tasks)
        for _ in _counted(packed, len(tasks), _span(report, 0.73, 1.0)):
            pass
    return bits


def _threads() -> int:
    """Return the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _span(report: Progress, start: float, stop: float) -> Progress:
    """Return a progress function for one part of the work."""
    return lambda done: report(start + (stop - start) * done)


def _counted(results: Iterable[Any], count: int, report: Progress) -> Iterable[Any]:
    for done, result in enumerate(results, 1):
        yield result
        report(done / count)


class _Spectra(local):
    """A thread's zero-padded input of an inverse transform."""

    def __init__(self, frequencies: int) -> None:
        self.padded = np.zeros(frequencies, np.complex128)


def _stretch(
    images: NDArray[np.uint8], side: int, pool: ThreadPoolExecutor, report: Progress
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interpolate the 28 long rows horizontally.

    Returns
    -------
    stretched : ndarray of float64, shape (28, side / 32, 32 * samples)
        Without the Nyquist frequency; column c of a row is ``[c % (side / 32), c // (side / 32)]``.
    nyquist : ndarray of float64, shape (28,)
        The amplitude of the Nyquist frequency of each row.
    """
    width = images.shape[0] * ROWS
    phases, coarse = side // _COARSE, images.shape[0] * _COARSE
    spectra = np.empty((ROWS, width // 2 + 1), np.complex128)
    stretched = np.empty((ROWS, phases, coarse))
    buffers = _Spectra(coarse // 2 + 1)

    def forward(row: int) -> None:
        spectra[row] = np.fft.rfft(images[:, row, :].reshape(-1).astype(float), norm="forward")

    def inverse(row: int, phase: int, shift: NDArray[np.complex128]) -> None:
        # Every phases-th column is one short transform of the spectrum, shifted by a phase.
        padded = buffers.padded
        np.multiply(spectra[row], shift, out=padded[: len(shift)])
        np.fft.irfft(padded, coarse, norm="forward", out=stretched[row, phase])

    list(pool.map(forward, range(ROWS)))
    nyquist = spectra[:, -1].real.copy()
    spectra[:, -1] = 0
    frequencies = np.arange(spectra.shape[1])
    for phase in range(phases):
        shift = np.exp(2j * np.pi * phase / (phases * coarse) * frequencies)
        list(pool.map(lambda row, p=phase, s=shift: inverse(row, p, s), range(ROWS)))
        report((phase + 1) / phases)
    return stretched, nyquist


class _Tile(local):
    """A thread's working memory for one tile of columns."""

    def __init__(self, images: int, side: int) -> None:
        columns = images * side
        angle = 2 * np.pi * (ROWS // 2) * np.arange(side) / side
        # x[0..27], cos, sin, and x of the vertical Nyquist frequency
        self.left = np.empty((columns, ROWS + 3))
        self.left[:, ROWS] = np.tile(np.cos(angle), images)
        self.left[:, ROWS + 1] = np.tile(np.sin(angle), images)
        self.real = np.empty((columns, side))
        self.imag = np.empty((columns, side))
        self.ones = np.empty((columns, side), bool)


class _Power:
    """|y|^2 of the resized images, computed a tile at a time and never kept.

    Parameters
    ----------
    stretched, nyquist : ndarray
        As `_stretch` returns them.
    side : int
    """

    def __init__(
        self, stretched: NDArray[np.float64], nyquist: NDArray[np.float64], side: int
    ) -> None:
        half = ROWS // 2
        rows, frequencies = np.arange(side), np.arange(-half, half)
        up = np.exp(2j * np.pi / side * np.outer(rows, frequencies))
        down = np.exp(-2j * np.pi / ROWS * np.outer(frequencies, np.arange(ROWS)))
        vertical = up @ down / ROWS
        border = vertical @ nyquist
        self.stretched, self.side = stretched, side
        self.to_real = np.vstack([vertical.real.T, border.real, border.imag])
        self.alternating = (-1.0) ** np.arange(ROWS) / ROWS
        wave = -np.sin(2 * np.pi / side * half * rows)  # imaginary part, times `alternating`
        self.to_imag = np.vstack([border.imag, -border.real, wave])
        self.tile_images = max(1, _TILE // side**2)
        self.tile = _Tile(self.tile_images, side)

    def peak(self, task: range) -> float:
        """Return the largest |y|^2 of the images of `task`."""
        return max(float(self._squares(images).max()) for images in self._tiles(task))

    def pack(self, task: range, threshold: float, bits: NDArray[np.uint8]) -> None:
        """Set the rows of `bits` of the images of `task`: 1 where |y|^2 is above `threshold`."""
        for images in self._tiles(task):
            squares = self._squares(images)
            ones = np.greater(squares, threshold, out=self.tile.ones[: len(squares)])
            bits[images.start : images.stop] = np.packbits(ones.reshape(len(images), -1), axis=1)

    def _tiles(self, task: range) -> list[range]:
        step = self.tile_images
        return [range(i, min(i + step, task.stop)) for i in range(task.start, task.stop, step)]

    def _squares(self, images: range) -> NDArray[np.float64]:
        """Return |y|^2, shape (columns, side), in memory that the thread's next call reuses."""
        columns, tile = len(images) * self.side, self.tile
        left, real, imag = tile.left[:columns], tile.real[:columns], tile.imag[:columns]
        part = self.stretched[:, :, images.start * _COARSE : images.stop * _COARSE]
        left.reshape(-1, part.shape[1], ROWS + 3)[..., :ROWS] = part.transpose(2, 1, 0)
        np.matmul(left[:, :ROWS], self.alternating, out=left[:, ROWS + 2])
        _product(left[:, : ROWS + 2], self.to_real, real)
        _product(left[:, ROWS:], self.to_imag, imag)
        np.multiply(real, real, out=real)
        np.multiply(imag, imag, out=imag)
        return np.add(real, imag, out=real)


def _product(left: NDArray[np.float64], right: NDArray[np.float64], out: NDArray[Any]) -> None:
    """Compute out = left @ right in strips of `_STRIP` rows."""
    strips = len(left) // _STRIP
    np.matmul(
        left.reshape(strips, _STRIP, -1), right, out=out.reshape(strips, _STRIP, out.shape[1])
    )
