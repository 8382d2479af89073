"""Options: every knob of compile and run, in one frozen dataclass."""

import re
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, Self, get_args

from teraedge.errors import OptionsError
from teraedge.passes import PASSES

Mode = Literal["a", "b", "c"]
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ITEMSIZE: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of an activation in memory, by precision."""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(size: int | str) -> int:
    """Return a size in bytes from a whole number or a text such as "8GB" or "512 MiB".

    Examples
    --------
    >>> parse_bytes("8GB")
    8000000000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS or isinstance(size, bool):
        raise OptionsError(
            f'memory is {size!r}; give bytes as a whole number or a text such as "8GB" or "512MiB"'
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True)
class Options:
    """How to compile and run a network. The defaults switch on everything that is exact.

    Parameters
    ----------
    prune : bool, default True
        Drop samples whose row has become all zero, wherever every later layer keeps a zero row
        zero. The answer does not change.
    merge : bool, default True
        Let samples whose rows have become equal bit for bit run once. The answer does not change.
        On a GPU only those among 16 neighbours do, in the kernel for many small layers, until few
        live on; there, samples whose neurons are all at the activation's upper bound need not run
        any more where it is known what becomes of them.
    passes : bool or tuple of str, default True
        The exact rewrites of the network before the run: True for every one, False for none, or
        the names of those wanted.
    precision : {"fp32", "fp16", "bf16"}, default "fp32"
        How activations are stored between layers; sums are fp32 in any case. "fp16" and "bf16",
        on a GPU only, round the features and the outputs of every layer to 11 or 8 significant
        bits, so that they take half of the memory and of its bandwidth: **the answer changes**, by
        at most what `Result.error_bound` says. Values that "fp16" cannot hold, beyond 65504, are
        held there. The pass `factor` is left out, since it would round once more.
    threads : int, optional
        CPU threads of a run; by default every core this process may use.
    memory : int or str, optional
        Memory of the device for the compiled layers, in bytes or as a text such as "8GB"; by
        default half of the machine's memory, or half of what is free on a GPU. On the CPU, layers
        beyond it are made again from the network in every run; on a GPU they come from the host
        while others run, and are made again if the host has no room for them either.

    Raises
    ------
    OptionsError
        If a value is not allowed.

    Examples
    --------
    >>> Options.mode("b").merge
    False
    """

    prune: bool = True
    merge: bool = True
    passes: bool | tuple[str, ...] = True
    precision: Precision = "fp32"
    threads: int | None = None
    memory: int | str | None = None

    def __post_init__(self) -> None:
        for name in ("prune", "merge"):
            if not isinstance(getattr(self, name), bool):
                raise OptionsError(f"{name} is {getattr(self, name)!r}; give True or False")
        if isinstance(self.passes, list | set | frozenset):
            object.__setattr__(self, "passes", tuple(self.passes))
        names = () if isinstance(self.passes, bool) else self.passes
        if not isinstance(names, tuple) or not set(names) <= set(PASSES):
            raise OptionsError(
                f"passes is {self.passes!r}; give True (all), False (none) or a tuple of names "
                f"from {', '.join(PASSES)}"
            )
        if self.precision not in PRECISIONS:
            raise OptionsError(
                f"precision is {self.precision!r}; allowed: {', '.join(map(repr, PRECISIONS))}"
            )
        threads = self.threads
        if threads is not None and (
            not isinstance(threads, Integral) or isinstance(threads, bool) or threads < 1
        ):
            raise OptionsError(f"threads is {threads!r}; give a whole number of 1 or more, or None")
        if self.memory is not None:
            parse_bytes(self.memory)

    @property
    def chosen_passes(self) -> tuple[str, ...]:
        """The names of the passes to run, in their order."""
        if isinstance(self.passes, bool):
            names: tuple[str, ...] = PASSES if self.passes else ()
        else:
            names = tuple(name for name in PASSES if name in self.passes)
        exact = self.precision == "fp32"
        return names if exact else tuple(name for name in names if name != "factor")

    @classmethod
    def mode(cls, mode: Mode, *, threads: int | None = None, precision: Precision = "fp32") -> Self:
        """Return the options of one of the three measuring modes.

        Parameters
        ----------
        mode : {"a", "b", "c"}
            "a": the kernels alone, nothing dropped; "b": sample pruning only, as the challenge's
            champions measure; "c": everything exact, the default of `Options()`.
        threads : int, optional
            As in `Options`.
        precision : {"fp32", "fp16", "bf16"}, default "fp32"
            As in `Options`.
        """
        if str(mode).lower() not in ("a", "b", "c"):
            raise OptionsError(f"mode is {mode!r}; allowed: 'a', 'b', 'c'")
        mode = str(mode).lower()  # type: ignore[assignment]
        exact = mode == "c"
        return cls(
            prune=mode != "a", merge=exact, passes=exact, threads=threads, precision=precision
        )
