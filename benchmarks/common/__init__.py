"""What all benchmarks share: result files, folders, distances, tests of ranks."""
