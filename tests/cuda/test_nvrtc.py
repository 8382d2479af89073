"""Every kernel that the CUDA engine can ask for compiles, without a GPU, and spills nothing.

``python tests/cuda_compile.py sm_90`` lists what each takes.
"""

from functools import cache

import cuda_compile
import pytest

from teraedge.engines.cuda import nvrtc

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
WANTED = cuda_compile.specialisations()


@cache
def known_architectures():
    from cuda.bindings import nvrtc as bindings

    return [f"sm_{number}" for number in bindings.nvrtcGetSupportedArchs()[1]]


@pytest.mark.parametrize("number", range(len(WANTED)), ids=map(cuda_compile.label, WANTED))
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiles_and_spills_nothing(arch, number, compiled):
    if arch not in known_architectures():
        pytest.skip(f"NVRTC {nvrtc.version()} does not know {arch}")
    usage = compiled(WANTED[number], arch)
    assert isinstance(usage, dict), usage
    for name in WANTED[number][2]:
        assert name in usage, f"no kernel {name} with extern C linkage"
        use = usage[name]
        print(f"{name}: {use}")
        assert use.spills == 0, f"{name}: {use}"
        assert set(use.parameters) <= {8}, f"{name} has a parameter that is not 64 bits wide"
        assert use.shared <= 48 * 1024


def test_every_kernel_file_is_compiled():
    files = {file.name for file in nvrtc.KERNELS.glob("*.cu")}
    assert files == {file for file, _, _ in WANTED}
