"""Small kernels that find out what a CPU and its memory can do, for `edgeawq profile`."""
