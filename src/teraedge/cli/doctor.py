"""``teraedge doctor``: what teraedge finds on this machine, and whether it works."""

import os
import re
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import typer
from rich.text import Text

from teraedge import host
from teraedge.bench import machine
from teraedge.cli import doctor_cuda
from teraedge.cli.console import out, write_json
from teraedge.cli.finding import Finding
from teraedge.cli.params import JsonOption
from teraedge.cli.progress import Stage
from teraedge.text import count, scaled, seconds

_SIMD = ("avx2", "fma", "avx512f", "avx512bf16", "avx512fp16", "amx-tile", "neon", "sve", "sve2")


def doctor(as_json: JsonOption = False) -> None:
    """Show what is found here, and test the engines.

    The exit status is 0 where the CPU engine and every GPU that is found work.
    """
    with Stage("looking and testing"):
        findings = list(_findings())
    healthy = all(finding.ok is not False for finding in findings)
    if as_json:
        values = {finding.name.replace(" ", "_"): finding.value for finding in findings}
        write_json({**values, "healthy": healthy})
    else:
        _show(findings, healthy)
    if not healthy:
        raise typer.Exit(1)


def _show(findings: list[Finding], healthy: bool) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.ROUNDED, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        style = {True: "green", False: "bold red", None: ""}[finding.ok]
        table.add_row(finding.name, Text(finding.text, style))
    out().print(table)
    engines = [finding.name for finding in findings if finding.name.endswith(" engine")]
    works = "The CPU engine works." if len(engines) == 1 else "The CPU and CUDA engines work."
    verdict = works if healthy else "Something is wrong: see the lines in red."
    out().print(verdict, style="bold green" if healthy else "bold red")


def _findings() -> Iterator[Finding]:
    yield from _software()
    yield from _hardware()
    yield from _folders()
    gpus = list(doctor_cuda.findings())
    yield from gpus
    yield _self_test()
    if any(gpu.name.startswith("cuda:") and gpu.ok for gpu in gpus):
        yield _self_test("cuda")  # which measures the GPU's speeds, if nobody has
        yield doctor_cuda.rates("cuda:0")


def _software() -> Iterator[Finding]:
    for name, version in machine.versions().items():
        yield Finding(name, version, version or "not installed", version is not None)
    yield from (_extra(name, packages) for name, packages in _extras().items())


def _extras() -> dict[str, list[str]]:
    """Return the packages of each optional extra, from the metadata of our own installation."""
    extras: dict[str, list[str]] = {}
    try:
        lines = metadata.requires("teraedge") or []
    except metadata.PackageNotFoundError:  # run from its source tree
        return extras
    for line in lines:
        match = re.match(r"([\w.-]+)[^;]*;\s*extra\s*==\s*['\"](\w+)['\"]", line)
        if match and match[2] not in ("dev", "cuda12", "cuda13"):  # these have their own lines
            extras.setdefault(match[2], []).append(match[1])
    return extras


def _extra(name: str, packages: list[str]) -> Finding:
    missing = [package for package in packages if find_spec(package.replace("-", "_")) is None]
    text = f"installed ({', '.join(packages)})"
    if missing:
        text = f"{', '.join(missing)} not installed: pip install 'teraedge[{name}]'"
    return Finding(f"extra {name}", not missing, text)


def _hardware() -> Iterator[Finding]:
    cores, memory = host.usable_cores(), host.memory_bytes()
    yield Finding("cpu", host.cpu_model(), host.cpu_model())
    yield Finding("cores", cores, f"{count(cores, 'core')} usable")
    simd = _simd()
    yield Finding("simd", simd, ", ".join(simd) or "none known")
    yield Finding("memory", memory, "unknown" if memory is None else scaled(memory, "B"))


def _simd() -> list[str]:
    """Return the vector extensions that numba's compiler sees and that matter here."""
    try:
        from llvmlite import binding

        features = binding.get_host_cpu_features()
    except (ImportError, RuntimeError):
        return []
    return [name for name in _SIMD if features.get(name)]


def _folders() -> Iterator[Finding]:
    from teraedge.cache import cache_dir

    folder = cache_dir()
    writable = _writable(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    text = f"{folder}, {scaled(size, 'B')}" + ("" if writable else ", not writable")
    value = {"folder": str(folder), "bytes": size, "writable": writable}
    yield Finding("cache", value, text, writable or None)

    data = os.environ.get("TERAEDGE_DATA")
    yield Finding("TERAEDGE_DATA", data, data or "not set")
    yield _mnist(Path(data).expanduser() if data else folder / "mnist")


def _writable(folder: Path) -> bool:
    """Tell whether a folder can be written to, or made."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def _mnist(folder: Path) -> Finding:
    from teraedge.datasets import mnist
    from teraedge.errors import DataError

    if not any(folder.glob("train-images-idx3-ubyte*")):
        text = "not found; needed, and downloaded, only for challenges above 1024 neurons"
        return Finding("MNIST", None, text)
    try:
        mnist.images(source=folder)
    except DataError as error:
        return Finding("MNIST", None, str(error))
    return Finding("MNIST", str(folder), f"found in {folder}, checked")


def _self_test(device: str = "cpu") -> Finding:
    """Run a small network on a device and compare it with the reference."""
    name = f"{device} engine"
    with Stage(f"testing the {name}") as stage:
        error = _difference(device)
    if error is None:
        return Finding(name, True, f"works ({seconds(stage.seconds)})", True)
    return Finding(name, False, error, False)


def _difference(device: str) -> str | None:
    """Return what is wrong with the engine of a device, or None."""
    import numpy as np

    import teraedge

    random = np.random.default_rng(1)
    shapes = [(19, 33), (33, 40), (40, 7)]
    layers = [
        teraedge.Layer(
            random.normal(size=shape) * (random.random(shape) < 0.3),
            bias=-0.1,
            activation=teraedge.ClippedReLU(32.0),
        )
        for shape in shapes
    ]
    network = teraedge.Network(layers)
    features = random.random((100, 19)) < 0.2
    try:
        with teraedge.compile(network, device) as engine:
            result = engine.run(features)
    except Exception as error:  # whatever it is, it is the finding
        return f"fails: {type(error).__name__}: {error}"
    expected = teraedge.reference.run(network, features)
    if not np.allclose(result.outputs, expected.outputs, rtol=1e-5, atol=1e-6):
        return "gives outputs that differ from the reference"
    return None
