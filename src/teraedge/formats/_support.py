"""What importers take, and what they say of anything else."""

from teraedge.errors import ModelError

SUPPORTED = (
    "Linear, ReLU, ReLU6, Hardtanh, clamp, Sigmoid, Tanh, GELU, SiLU, BatchNorm1d, Dropout, "
    "Identity, Flatten, sums, products with constants, Conv1d and Conv2d with lower_conv=True, and "
    "at the end Softmax, LogSoftmax, argmax"
)
ADVICE = {
    "MaxPool": "give the layers after it, or train with strided convolutions instead",
    "AvgPool": "give the layers after it, or train with strided convolutions instead",
    "LayerNorm": "its scale depends on the sample; train with BatchNorm1d instead",
    "RMSNorm": "its scale depends on the sample; train with BatchNorm1d instead",
    "GroupNorm": "its scale depends on the sample; train with BatchNorm1d instead",
    "LeakyReLU": "train with ReLU, GELU or SiLU instead",
    "ELU": "train with ReLU, GELU or SiLU instead",
    "Softmax": "it is supported at the end only",
    "Transformer": "give its linear parts one by one",
    "Attention": "give its linear parts one by one",
}
"""What to do about operations that people may have; by parts of their names."""


def unsupported(what: str) -> ModelError:
    advice = next((text for part, text in ADVICE.items() if part.lower() in what.lower()), None)
    return ModelError(f"{what} is not supported: {advice or 'supported are ' + SUPPORTED}")
