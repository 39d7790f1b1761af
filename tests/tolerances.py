"""Every tolerance of the tests, with its reason. All other comparisons are exact."""

from __future__ import annotations

PRODUCT = 1e-6
"""Kernel against reference, in units of sum |w| |x|: both add the same float32 numbers, in another order and with
one rounding more or less for each group of 32 columns; of storage types with minima, the parts before they cancel are
up to four times larger than the weights."""

PAIRED_SUM = 1 / 65534
"""In units of the largest of a row's sums of columns, which the minima of Q2_K, Q4_K and Q5_K are multiplied with as
int16 values."""

PAIRED_TYPES = ("Q2_K", "Q4_K", "Q5_K")
"""These types."""

BFLOAT16 = 2**-8
"""In the same units, in addition: for bfloat16 weights, avx512bf16 rounds activations to the eight bits of bfloat16."""

ACTIVATION = 1e-6
"""Kernel against reference, relative: SiLU and GELU through a polynomial for exp2 that is good to a few float32 steps,
and an error function with an absolute error of 1.5e-7."""

NORM = 1e-6
"""Kernel against reference, relative to the row's largest value: the mean of squares is summed in another order."""

ROTARY = 1.2e-7
"""Kernel against reference: one float32 step of a number up to 1, since two libraries round the same cosine."""

ATTENTION = 1e-7
"""Kernel against reference, in units of the largest value times one more than the largest possible score: both sum
float32 products of the same cache in another order, and an error of a score is a relative error of its weight."""

BF16_ATTENTION = 2**-8
"""The same beside ``ATTENTION`` for keys and values in bfloat16, in units of the largest value: weights are rounded to
steps of 2 ** -8, and the error of their sum cancels in the average."""

Q8_ATTENTION = 2**-13
"""The same for keys and values in int8: weights are rounded to 1 / 65280 of the largest of 256, and errors add up."""

EXPERTS = 2e-6
"""Kernel against reference, in units of the largest output: two products in a row, of float weights, without rounded
activations."""

ONE_TERM_EXPERTS = 3e-3
"""Part of the norm of the outputs, for quantized experts: now and then an activation of either product is rounded the
other way, by a step of 1 / 127 of its group's largest. A wrong scale or sum is ten times as much."""

TWO_TERM_EXPERTS = 2e-4
"""The same with two int8 terms, whose steps are 1 / 127 of those, and with ``PAIRED_SUM``."""

FLOAT_LOGITS = 5e-6
"""Part of the range of the logits, float weights and cache against `transformers`: float32 sums in another order."""

HALF_CACHE = 1e-3
"""The same with keys and values kept in half precision, whose step is 2 ** -11. Random weights average less of it away
than trained ones."""

HALF_TIES = 2e-4
"""The same against `transformers` with keys and values rounded alike: now and then one is rounded the other way."""

Q8_TIES = 2e-3
"""The same as ``FLOAT_LOGITS`` for keys and values in q8_0, kernels against the reference: now and then a value is
rounded the other way, by a step of 1 / 255 or 1 / 127."""

TWO_TERMS = 2e-4
"""The same as ``FLOAT_LOGITS`` for quantized weights and two int8 terms, which keep 15 bits of the largest of 32
activations."""

LLAMACPP_FLOAT = 1e-5
"""Part of the range of the logits, against llama.cpp with float weights and a float cache: float32 sums in another
order, and six digits of the golden logits."""

LLAMACPP_GELU = 4e-4
"""The same where llama.cpp takes its activation from a table in half precision."""

LLAMACPP_HALF = 2e-3
"""The same with half-precision weights: llama.cpp rounds what they are multiplied with to half precision."""

LLAMACPP_INT8 = 0.08
"""The same with Q8_0 weights: llama.cpp rounds what they are multiplied with to 8 bits, which moves the tiny models by
up to 0.03, and by 0.05 where it decides between experts. A window that is not kept moves them by 0.5."""

KL_DEFAULT = 0.0008
"""Mean divergence of next-token distributions from float32, in nats, in the default precision on the golden sequence:
a quarter of llama.cpp's, and 1.6 times the measured cost of int8 activations with coarse terms for outliers."""

KL_HIGH = 1e-5
"""The same with two int8 terms everywhere: a half-precision cache is what is left, and costs a tenth of this."""

GREEDY_TIE = 0.05
"""The distance of two tokens in nats, for llama.cpp in float32 or for us, within which either counts as the most
likely one."""

MERGED_LOGITS = 2e-5
"""Of the range of the logits, an adapter that is merged against peft, which computes b (a x) beside W x: float32 sums
in another order."""

XLORA_LOGITS = 1e-4
"""Of the range of the logits, X-LoRA against its equations in float64: scalings are a function of rounded states, and
multiply what the next layers round."""

XLORA_QUANTIZED_LOGITS = 4e-3
"""The same on quantized weights with two int8 terms."""

REQUANTIZED_LOGITS = 0.01
"""The same where merged matrices are stored in Q8_0 again: half a step of 8 bits on each weight."""
