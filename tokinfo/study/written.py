"""Values that a study writes as text: a field of their type reads the text once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema


class Written(ABC):
    """A value with one text; pydantic reads a field of this type from it and dumps it as it."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self:
        """Read the value; raises InvalidError naming what is allowed."""

    @abstractmethod
    def __str__(self) -> str: ...

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(str(value)),
            serialization=core_schema.to_string_ser_schema(when_used="always"),
        )
