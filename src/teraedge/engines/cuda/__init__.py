"""CUDA engine: kernels in CUDA C++, compiled on the user's machine, and their driver."""
