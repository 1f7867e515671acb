"""The kernels that MLX ships for Apple GPUs, run on this machine's processor: see docs/metal.md."""
