"""Prints the table of all settings, as docs/settings.md holds it.

python -m experiments.settings > docs/settings.md
"""

from cepam_jax.run.config import table
from experiments import cli

PAGE = """# All settings

Every field of a configuration, with its default, what it does and what it may be. Made from the
declarations, which stand beside the parts that read them, by `python -m experiments.settings`. Change a
field with `--config.mechanism.gamma=30`, or in Python:

```python
import cepam_jax

config = cepam_jax.defaults()
config.mechanism.gamma = 30.0
```

"""


def page() -> str:
    """The page in Markdown."""
    return PAGE + table()


def main():
    print(page(), end="")


if __name__ == "__main__":
    cli.run(main)
