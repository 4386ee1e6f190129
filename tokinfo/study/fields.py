"""What every part of a study is made of: strict models and the types of their fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError


def _number(value: Any) -> Any:
    """Refuse booleans, which Python counts as 0 and 1: `seed: yes` is a mistake."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not a boolean")
    return value


LARGEST = 2**53
"""The largest whole number below which a float holds every one."""


def _counted(value: int) -> int:
    """Refuse what no float holds exactly: sizes and times are computed from these numbers."""
    if abs(value) > LARGEST:
        raise PydanticCustomError(
            "number_size", "Input should be at most {most}", {"most": LARGEST}
        )
    return value


FORM_ALONE = "form alone"
"""Context of a validation that lets pass what is right in form and fits nothing beside it."""


MISFIT = "misfit"
"""Type of the error of a value that is right in form and does not fit."""


def fits(check: Callable[..., None], *beside: str) -> AfterValidator:
    """Return the validator of a value that has to fit the fields of its entry before it.

    Args:
        check: called with the value and those fields' values; raises a `misfit`.
        beside: names of those fields. Where one of them is wrong, nothing is checked.
    """

    def validate(value: Any, info: ValidationInfo) -> Any:
        if info.context != FORM_ALONE and all(name in info.data for name in beside):
            check(value, *(info.data[name] for name in beside))
        return value

    return AfterValidator(validate)


def misfit(message: str, allowed: str) -> PydanticCustomError:
    """Return the error of a value that is right in form and does not fit."""
    return PydanticCustomError(MISFIT, "{message}", {"message": message, "allowed": allowed})


Integer = Annotated[int, BeforeValidator(_number), AfterValidator(_counted)]
Real = Annotated[float, BeforeValidator(_number)]
Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        max_length=64,
        description="Lower-case letters, digits, dots and hyphens; becomes part of file names.",
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_number)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MetricName = Literal["l1", "l2", "cosine", "l1+cosine"]
Parametrisation = Literal["embedding", "vocabulary", "mixture"]
Quantization = Literal["float32", "bfloat16", "float16", "int8", "nf4"]
ComputeDtype = Literal["float32", "bfloat16", "float16"]
Padding = Literal["none", "n_ctx"]
State = Literal["trained", "untrained"]


class Strict(BaseModel):
    """A part of the study: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
