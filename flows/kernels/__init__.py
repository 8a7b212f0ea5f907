"""Layers as kernels in C for the CPU and as CUDA graphs, built when they are first needed."""
