"""Multiplications of a function's matrix products and convolutions, and how fast this device makes them."""

import math

import jax
from jax.extend import core

_SIDE = 1024  # of the square matrices that measure the device
_TIMES = 16  # products of them


def products(function, *arguments) -> int:
    """Multiplications of all matrix products and convolutions of a function, before it is compiled.

    A loop counts as often as it turns; one whose turns are not known before it runs counts once.

    Args:
      function: of arrays, jitted or not.
      *arguments: arrays or their shapes.
    """
    found = _each(jax.make_jaxpr(function)(*arguments).jaxpr)
    return sum(turns * _multiplications(equation) for equation, turns in found)


def _multiplications(equation) -> int:
    """Of one product or convolution."""
    result = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return result * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    kernel = equation.invars[1].aval.shape
    return result * math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]


def alone(function, *arguments):
    """The products and convolutions of a function in their own shapes, and nothing else of it.

    Each is made as often as the function makes it, of normal numbers, and waits for the one before; a loop
    counts as in `products`.

    Args:
      function: of arrays, jitted or not.
      *arguments: arrays or their shapes.

    Returns:
      A call without arguments.
    """
    found = list(_each(jax.make_jaxpr(function)(*arguments).jaxpr))
    factors = [
        tuple(
            jax.random.normal(jax.random.key(i), v.aval.shape).astype(v.aval.dtype) for v in equation.invars
        )
        for i, (equation, _) in enumerate(found)
    ]

    @jax.jit
    def run(factors):
        return [_repeated(*each, *pair) for each, pair in zip(found, factors, strict=True)]

    return lambda: run(factors)


def _each(jaxpr, turns: int = 1):
    """Equations of products and convolutions, and how often each is made."""
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            yield equation, turns
            continue
        for inner in core.jaxprs_in_params(params):
            yield from _each(inner, turns * (params["length"] if name == "scan" else 1))


def _repeated(equation, turns, left, right):
    """The first number of the left factor after so many products; each result goes into the next."""

    def once(_, factor):
        product = equation.primitive.bind(factor, right, **equation.params)
        return factor.at[(0,) * factor.ndim].set(product.reshape(-1)[0].astype(factor.dtype))

    return jax.lax.fori_loop(0, turns, once, left)[(0,) * left.ndim]


def yardstick():
    """Products of square matrices, one after another: a call without arguments, and its multiplications."""
    a = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE)) / math.sqrt(_SIDE)  # lengths stay as they are

    @jax.jit
    def power(a):
        return jax.lax.fori_loop(0, _TIMES, lambda _, x: x @ a, a)

    return (lambda: power(a)), _TIMES * _SIDE**3
