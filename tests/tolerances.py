"""Every tolerance of the tests, named once, with where it comes from. What is not here is compared exactly."""

from __future__ import annotations

PRODUCT = 1e-6
"""Kernel against twin, in units of sum |w| |x|: both add the same float32 numbers, in another order and with one rounding
more or less for each group of 32 columns; of storage types with minima, the parts before they cancel are up to four times
larger than the weights."""

ACTIVATION = 1e-6
"""Kernel against twin, relative: SiLU and GELU through a polynomial for exp2 that is good to a few float32 steps, and an
error function with an absolute error of 1.5e-7."""

NORM = 1e-6
"""Kernel against twin, relative to the largest value of the row: the mean of squares is summed in another order."""

ROTARY = 1.2e-7
"""Kernel against twin: one float32 step of a number up to 1, since two libraries round the same cosine."""

NEAR_TIE = 0.004
"""Of a rounding step: how near to a tie two float32 remainders of one value can round apart. Unfused, the product that is
taken away has an error of 2 ** -24 of a value that is up to 127 * 254 steps large: 0.002 steps."""

ATTENTION = 1e-7
"""Kernel against twin, in units of the largest value times one more than the largest possible score: both sum float32
products of the same half-precision cache in another order, and an error of a score is a relative error of its weight."""

HALF_CACHE = 1e-3
"""Of the range of the logits, against `transformers` in float32: keys and values are kept in half precision, whose step is
2 ** -11. Random weights average less of it away than trained ones."""

FLOAT_LOGITS = 1e-4
"""The same against `transformers` with keys and values rounded alike: float32 sums in another order, and now and then a
key or value that is rounded to half precision the other way."""

HIGH_LOGITS = 5e-4
"""The same for quantised weights with two int8 terms, which keep 15 bits of the largest of 32 activations."""

KL_DEFAULT = 0.0028
"""Mean divergence of next-token distributions, in nats, in the default precision: what int8 activations with one scale for
32 columns cost when the most sensitive products take two terms. llama.cpp has 0.0033 on the default model."""

KL_HIGH = 0.0005
"""The same with two int8 terms everywhere."""
