"""Fast layers: kernels in C on a CPU, CUDA graphs on a GPU; both are built when they are first needed."""
