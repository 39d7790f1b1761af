"""An independent check of JSON against a schema, with decimal fractions exact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import MAX_EMAX, Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice, permutations, product
from typing import Any

import jsonschema
from jsonschema import validators

_SPELLINGS = 600


def _multiple_of(validator: Any, factor: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, Decimal) and abs(instance.adjusted()) > 300:
        yield jsonschema.ValidationError(f"{instance} is too long to be divided")
    elif isinstance(instance, int | float | Decimal) and not isinstance(instance, bool):
        quotient = Fraction(instance) / Fraction(str(factor))
        if quotient.denominator != 1:
            yield jsonschema.ValidationError(f"{instance} is not a multiple of {factor}")


def _type(validator: Any, types: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, Decimal):
        is_whole = instance.adjusted() < 30 and instance == instance.to_integral_value()
        instance = int(instance) if is_whole else 0.5
    yield from jsonschema.Draft202012Validator.VALIDATORS["type"](validator, types, instance, schema)


_Validator = validators.extend(jsonschema.Draft202012Validator, {"multipleOf": _multiple_of, "type": _type})


def is_valid(answer: bytes, schema: Any) -> bool:
    """Whether the answer is JSON that the schema describes."""
    value = json.loads(answer.decode(), parse_float=_decimal)
    return bool(_Validator(schema).is_valid(value))


def _decimal(text: str) -> Decimal:
    """Returns the number; one with a larger exponent than Decimal has as the largest or smallest of its sign."""
    try:
        return Decimal(text)
    except InvalidOperation:
        digits, _, exponent = text.lower().partition("e")
        if not Decimal(digits):
            return Decimal(0)
        return Decimal(f"1e{'-' if exponent.startswith('-') else ''}{MAX_EMAX}").copy_sign(Decimal(digits))


def spellings(value: object) -> Iterator[str]:
    """Returns some of the texts that say this value: members in each order, whole numbers without a point."""
    return islice(_spellings(value), _SPELLINGS)


def _spellings(value: object) -> Iterator[str]:
    if isinstance(value, float):
        yield json.dumps(value)
        if value.is_integer():
            yield str(int(value))
    elif isinstance(value, list):
        for parts in product(*(list(islice(_spellings(each), 12)) for each in value)):
            yield f"[{','.join(parts)}]"
    elif isinstance(value, dict):
        for order in permutations(value.items()):
            for parts in product(*(list(islice(_spellings(each), 12)) for _, each in order)):
                names = (json.dumps(name, ensure_ascii=False) for name, _ in order)
                yield "{" + ",".join(f"{name}:{part}" for name, part in zip(names, parts, strict=True)) + "}"
    else:
        yield json.dumps(value, ensure_ascii=False)
