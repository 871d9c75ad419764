"""Ray pipelines as importable functions f(config) -> summary."""
