"""The options that several commands share, written once."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from teraedge.options import Options


class Precision(StrEnum):
    """The values of `teraedge.Options.precision`."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class Mode(StrEnum):
    """The measuring modes of `teraedge.Options.mode`."""

    a = "a"
    b = "b"
    c = "c"

    def options(
        self, threads: int | None = None, precision: Precision = Precision.fp32
    ) -> "Options":
        """Return the options of the mode."""
        from teraedge.options import Options

        return Options.mode(self.value, threads=threads, precision=precision.value)


DeviceOption: TypeAlias = Annotated[
    str,
    typer.Option("--device", help="Where to run: cpu, cuda (the first GPU), cuda:1, ..."),
]
ModeOption: TypeAlias = Annotated[
    Mode,
    typer.Option(
        "--mode",
        case_sensitive=False,
        help="a: the kernels alone; b: dead samples dropped; c: everything that is exact.",
    ),
]
PrecisionOption: TypeAlias = Annotated[
    Precision,
    typer.Option(
        "--precision",
        case_sensitive=False,
        help="How activations are stored; fp16 and bf16, on a GPU only, change the answer.",
    ),
]
ThreadsOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads; by default every core we may use."),
]
JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Write one JSON object to stdout, and nothing else.")
]
NeuronsOption: TypeAlias = Annotated[
    int, typer.Option("--neurons", "-n", help="Neurons a layer: 1024, 4096, 16384 or 65536.")
]
LayersOption: TypeAlias = Annotated[
    int, typer.Option("--layers", "-l", help="Layers; officially 120, 480 or 1920.")
]
SamplesOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--samples", min=1, help="Only the first SAMPLES of the 60,000 images."),
]
ModelArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model file or folder.", show_default=False)
]
FeaturesArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="FEATURES", help="The samples: .npy, .npz, .mtx or .tsv.", show_default=False
    ),
]
