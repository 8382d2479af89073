"""``teraedge convert``: write a model in another format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teraedge.cli.console import out
from teraedge.cli.params import ModelArgument
from teraedge.cli.progress import Stage, watched
from teraedge.text import count

if TYPE_CHECKING:
    from teraedge.network import Network


def convert(
    model: ModelArgument,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Where to: .safetensors, .onnx, .mtx, a folder neuron1024 (TSV) or another (MTX).",
        ),
    ],
    activation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a .safetensors file of plain weights and biases: the activation of all layers "
            "but the last, such as relu, gelu, silu or tanh.",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of an .onnx file: which of its outputs.")
    ] = None,
    lower_conv: Annotated[
        bool,
        typer.Option("--lower-conv", help="Of an .onnx file: make convolutions sparse layers."),
    ] = False,
) -> None:
    """Write a model in another format, layer by layer.

    OUT appears, or is replaced, only once all of it is written.
    """
    from teraedge import formats

    network = _open(model, activation, output, lower_conv)
    with Stage("converting") as stage:
        formats.save(watched(network, stage), target)
    for note in network.notes:
        out().print(note, soft_wrap=True)
    out().print(f"{target}: {count(len(network), 'layer')} written", soft_wrap=True)


def _open(model: Path, activation: str | None, output: str | None, lower_conv: bool) -> "Network":
    from teraedge import formats
    from teraedge.activations import from_spec
    from teraedge.errors import OptionsError

    suffix = model.suffix
    if (output is not None or lower_conv) and suffix != ".onnx":
        raise OptionsError(
            f"{model}: --output and --lower-conv are for .onnx files; leave them out"
        )
    if activation is not None and suffix != ".safetensors":
        raise OptionsError(f"{model}: --activation is for .safetensors files; leave it out")
    if suffix == ".onnx":
        return formats.from_onnx(model, output=output, lower_conv=lower_conv)
    if activation is not None:
        spec = {"name": activation} | ({"approximate": "none"} if activation == "gelu" else {})
        return formats.from_safetensors(model, from_spec(spec))
    return formats.load(model)
