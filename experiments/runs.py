"""Configurations of runs that belong together."""


def seeded(config, offset):
    """A copy with every seed shifted by `offset`."""
    config = config.copy_and_resolve_references()
    for name in config.seeds:
        config.seeds[name] += offset
    return config
