"""Compile every kernel that the CUDA engine can ask for, without a GPU, and list what it takes.

    python tests/cuda_compile.py sm_90

prints registers, spilled bytes, stack and shared memory of each.
"""

import os
import re
import struct
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from typing import NamedTuple

from teraedge.engines.cuda import nvrtc

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_KPARAM_INFO, _KPARAM_INFO_WORDS = 0x17, 4


class Usage(NamedTuple):
    """What one kernel takes.

    Attributes
    ----------
    registers : int
        A thread.
    stack, spills : int
        Bytes a thread.
    shared : int
        Static bytes a block.
    parameters : tuple of int
        Bytes of each.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    parameters: tuple


def specialisations():
    """Return ``(file, defines, names)`` of everything that is compiled on a user's machine."""
    found = [("probe.cu", {}, ["probe"])]
    if find_spec("teraedge.engines.cuda.specialisations"):
        from teraedge.engines.cuda.specialisations import all_specialisations

        found += all_specialisations()
    return found


def label(specialisation):
    """Return a name for people."""
    file, defines, _ = specialisation
    return " ".join([file, *(f"{name}={value}" for name, value in defines.items())])


class Compiling:
    """Compilations in processes of their own; NVRTC lets only one thread of a process work.

    Parameters
    ----------
    wanted : iterable of (specialisation, str)
        What to compile, and for which architecture.
    processes : int
        They give way to other programs.
    """

    def __init__(self, wanted, processes=2):
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), os.nice, (19,))
        self._found = {(label(s), arch): self._pool.submit(_usage, s, arch) for s, arch in wanted}

    def usage(self, specialisation, arch):
        """Wait for one: a dict of str to Usage, or a text where it does not compile."""
        return self._found[label(specialisation), arch].result()

    def stop(self):
        """Leave out what has not begun."""
        self._pool.shutdown(cancel_futures=True)


def compile_all(wanted, arch):
    """Compile for one architecture and return what `Compiling.usage` does, in order."""
    compiling = Compiling((specialisation, arch) for specialisation in wanted)
    found = [compiling.usage(specialisation, arch) for specialisation in wanted]
    compiling.stop()
    return found


def _usage(specialisation, arch):
    file, defines, _ = specialisation
    try:
        code, log = nvrtc.compile_cubin(file, defines, arch)
    except Exception as error:
        return str(error)
    sizes = _parameters(code)
    usage, name = {}, None
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            name = match[1]
        if match := _STACK.search(line):
            stack, stores, loads = map(int, match.groups())
        if (match := _USED.search(line)) and name:
            shared = _SHARED.search(line)
            usage[name] = Usage(
                int(match[1]),
                stack,
                stores + loads,
                int(shared[1]) if shared else 0,
                sizes.get(name, ()),
            )
            name = None
    return usage


def _parameters(code):
    """Return the bytes of each parameter of each kernel, from the ``.nv.info`` of an ELF image."""
    table, size, count, names = struct.unpack_from("<Q10xHHH", code, 0x28)
    sections = [struct.unpack_from("<IIQQQQ", code, table + i * size) for i in range(count)]
    start = sections[names][4]
    found = {}
    for name, _, _, _, offset, nbytes in sections:
        text = code[start + name : code.index(b"\0", start + name)].decode()
        if text.startswith(".nv.info."):
            info = code[offset : offset + nbytes]
            found[text.removeprefix(".nv.info.")] = _parameter_sizes(info)
    return found


def _parameter_sizes(info):
    sizes, at = {}, 0
    while at < len(info):
        form, attribute, length = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != _KPARAM_INFO_WORDS:  # the two bytes read as a length were the value
            continue
        if attribute == _KPARAM_INFO:
            _, ordinal, _, flags = struct.unpack_from("<IHHI", info, at)
            sizes[ordinal] = flags >> 18
        at += length
    return tuple(sizes[i] for i in sorted(sizes))


def main():
    arch = sys.argv[1] if len(sys.argv) > 1 else "sm_90"
    wanted = specialisations()
    for specialisation, usage in zip(wanted, compile_all(wanted, arch), strict=True):
        print(label(specialisation), "" if isinstance(usage, dict) else usage)
        for name, use in usage.items() if isinstance(usage, dict) else ():
            print(
                f"    {name}: {use.registers} registers, {use.spills} bytes spilled, "
                f"{use.stack} of stack, {use.shared} of shared memory"
            )


if __name__ == "__main__":
    main()
