"""The part of the profiler that runs on the device: Python's standard library, numpy and the runtime."""
