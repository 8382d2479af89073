"""Make the data files of teraedge.datasets again.

    python scripts/build_challenge_data.py MNIST_FOLDER [CATEGORIES_FOLDER]

MNIST_FOLDER holds train-images-idx3-ubyte.gz. CATEGORIES_FOLDER holds categories-N.txt, the final
live sample ids of the challenge's networks, 1-based, one a line; they are computed by running the
networks, so without the folder the files in the package stay.
"""

import lzma
import sys
from pathlib import Path

from teraedge.cache import atomic_write
from teraedge.datasets import challenge

DATA = Path(__file__).parents[1] / "src" / "teraedge" / "datasets" / "data"
SHIPPED = challenge.SIZES[0]


def main(mnist: str, categories: str | None = None) -> None:
    """Write the packed inputs of the smallest network, and copy the categories."""
    bits = challenge.build_features(SHIPPED, source=mnist).bits
    # A pixel column is 4 bytes, hence lp=2.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2}]
    with atomic_write(DATA / f"features-{SHIPPED}.bits.xz") as temporary:
        temporary.write_bytes(lzma.compress(bits.tobytes(), filters=filters))
    for neurons in challenge.SIZES if categories else ():
        text = (Path(categories) / f"categories-{neurons}.txt").read_text()
        with atomic_write(DATA / f"categories-{neurons}.txt") as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
