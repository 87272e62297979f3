"""Code that the benchmarks share: facts about the machine, and models of named shapes."""
