"""Arithmetic in C for CPUs, where PyTorch's own kernels leave much of a core unused.

One shared library for each set of instructions, compiled when Luthier is installed; ``library.py``
finds the one that fits. Every kernel has a way of PyTorch's beside it, which is taken for other
devices, precisions and layouts, and where nothing could be compiled.
"""
