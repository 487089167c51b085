"""Every kind of finding that our models can cause has words of ours."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from appliance.settings import Duration
from appliance.workflows.problems import phrase


class Inner(BaseModel):
    number: int


class Outer(BaseModel, extra="forbid"):
    text: str = Field("a", min_length=1, max_length=2)
    items: Annotated[list[int], Field(min_length=1, max_length=2)] = [1]
    mapping: dict[str, int] = {}
    inner: Inner = Inner(number=1)
    switch: bool = True
    ratio: float = Field(1, gt=0, lt=9)
    count: int = Field(1, ge=1, le=9)
    word: Literal["a", "b"] = "a"
    pause: Annotated[Duration, Field(ge=timedelta(milliseconds=500), le=timedelta(days=1, minutes=1))] = timedelta(1)
    gap: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"text": 1}, "expected a text"),
        ({"text": ""}, "empty"),
        ({"text": "abc"}, "longer than 2 characters"),
        ({"items": 1}, "expected a list"),
        ({"items": []}, "expected at least 1, got 0"),
        ({"items": [1, 2, 3]}, "expected at most 2, got 3"),
        ({"mapping": []}, "expected a mapping"),
        ({"inner": []}, "expected a mapping"),
        ({"inner": {}}, "is missing"),
        ({"switch": "maybe"}, "expected true or false"),
        ({"switch": []}, "expected true or false"),
        ({"ratio": "x"}, "expected a number"),
        ({"ratio": []}, "expected a number"),
        ({"ratio": 0}, "expected more than 0"),
        ({"ratio": 9}, "expected less than 9"),
        ({"count": "x"}, "expected a whole number"),
        ({"count": 1.5}, "expected a whole number"),
        ({"count": 0}, "expected at least 1"),
        ({"count": 10}, "expected at most 9"),
        ({"word": "c"}, "expected 'a' or 'b'"),
        ({"other": 1}, "is not known here"),
        ({"pause": "1ms"}, "expected at least 500ms"),
        ({"pause": "2d"}, "expected at most 1441m"),
        ({"gap": 0}, "expected more than 0s"),
    ],
)
def test_words(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer(**values)
    (detail,) = caught.value.errors()
    assert phrase(detail).removesuffix(".0") == words


def test_what_has_no_words_of_ours_keeps_its_own() -> None:
    assert phrase({"type": "value_error", "msg": "Value error, Not a colour"}) == "not a colour"
