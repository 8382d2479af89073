"""The advisor: what the sparsity of a network is worth on a device, measured by running it."""

from teraedge.advisor.advise import Advice, Advised, advise

__all__ = ["Advice", "Advised", "advise"]
