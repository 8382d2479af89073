"""``teraedge convert``: write a model in another format."""

from pathlib import Path
from typing import Annotated

import typer

from teraedge.cli.console import out
from teraedge.cli.params import ModelArgument
from teraedge.cli.progress import Stage, watched
from teraedge.text import count


def convert(
    model: ModelArgument,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Where to: .safetensors, .mtx, a folder neuron1024 (TSV) or another (MTX).",
        ),
    ],
) -> None:
    """Write a model in another format, layer by layer.

    OUT appears, or is replaced, only once all of it is written.
    """
    from teraedge import formats

    network = formats.load(model)
    with Stage("converting") as stage:
        formats.save(watched(network, stage), target)
    out().print(f"{target}: {count(len(network), 'layer')} written", soft_wrap=True)
