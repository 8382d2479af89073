"""The advisor: what the sparsity of a network is worth on a device, measured by running it."""

from teraedge.advisor.advice import Advice, Advised
from teraedge.advisor.advise import advise

__all__ = ["Advice", "Advised", "advise"]
