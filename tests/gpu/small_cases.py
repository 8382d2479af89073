"""Small networks on the GPU against the reference; what compute-sanitizer watches."""

import sys
from pathlib import Path

import numpy as np

import teraedge
from teraedge import Options

NAMES = ["rectangular", "most die", "shared inputs", "empty rows and columns", "dense"]
OPTIONS = [Options.mode("a"), Options.mode("b"), Options.mode("c"), Options(memory=3000)]


def main():
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from engines_networks import NETWORKS, make_features

    for name in NAMES:
        network = NETWORKS[name]
        for samples in (1, 33, 150):
            features = make_features(network, samples)
            expected = teraedge.reference.run(network, features)
            for options in OPTIONS:
                with teraedge.compile(network, "cuda", options) as engine:
                    result = engine.run(features)
                np.testing.assert_array_equal(result.outputs, expected.outputs)
                np.testing.assert_array_equal(result.live, expected.live)


if __name__ == "__main__":
    main()
