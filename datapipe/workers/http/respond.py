"""Values as JSON answers; numpy arrays go straight to orjson."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Response
from pydantic import BaseModel

__all__ = ["JSON", "json_answer"]

JSON = "application/json"


def json_answer(value: BaseModel | dict[str, Any], status: int = 200) -> Response:
    """An answer in JSON; NaN becomes null, since JSON has none."""
    if isinstance(value, BaseModel):
        return Response(value.model_dump_json(), status, media_type=JSON)
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type=JSON)
