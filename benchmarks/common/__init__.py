"""What the benchmarks share: the machine they run on, and models of named shapes."""
