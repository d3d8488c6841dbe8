// Compatibility header: see docs/kernels.md.
