"""Weights of other libraries into jaxser's. The only part of the project, with tests and benchmarks, that needs torch."""
