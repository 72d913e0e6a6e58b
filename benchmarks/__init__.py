"""Speed beside the torch code that jaxser stands in for: same weights, same audio, same machine, one run."""
