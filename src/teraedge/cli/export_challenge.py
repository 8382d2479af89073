"""``teraedge export-challenge``: write the challenge's data as its official files."""

from pathlib import Path
from typing import Annotated

import typer

from teraedge.cli.console import out
from teraedge.cli.params import LayersOption, NeuronsOption, SamplesOption
from teraedge.cli.progress import Stage, watched
from teraedge.text import count


def export_challenge(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)
    ],
    neurons: NeuronsOption = 1024,
    layers: LayersOption = 120,
    samples: SamplesOption = None,
) -> None:
    """Write the official TSV files of the challenge.

    These are the layers, the inputs and, where this many layers have official ones, the
    categories. DIR appears only once all of it is written.
    """
    from teraedge.cli.verdict import OFFICIAL_LAYERS
    from teraedge.datasets import challenge as official
    from teraedge.formats import graphchallenge as tsv
    from teraedge.formats._atomic import new_folder

    network = official.network(neurons, layers)
    with new_folder(folder) as temporary:
        with Stage("reading the images") as reading:
            features = official.features(neurons, samples, progress=reading)
        with Stage("writing the layers") as writing:
            tsv.to_graphchallenge(watched(network, writing), temporary / f"neuron{neurons}")
        with Stage("writing the inputs"):
            tsv.features_to_graphchallenge(features, temporary / f"sparse-images-{neurons}.tsv")
        if layers in OFFICIAL_LAYERS:
            ids = official.categories(neurons)
            name = f"neuron{neurons}-l{layers}-categories.tsv"
            tsv.categories_to_graphchallenge(ids[ids < len(features)], temporary / name)
    written = f"{count(layers, 'layer')} and {count(len(features), 'sample')} written"
    if layers not in OFFICIAL_LAYERS:
        written += f"; there are no official categories for {count(layers, 'layer')}"
    out().print(f"{folder}: {written}", soft_wrap=True)
