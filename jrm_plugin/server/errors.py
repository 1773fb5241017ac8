"""What a request that fails as a whole is answered, and JSON as all answers are written."""

import json
from typing import Any

from starlette.responses import JSONResponse

from jrm_plugin.records.wire import CODES, RETRY_AFTER, error_to_json


class Answer(JSONResponse):
    """JSON in ASCII, so that half of a character in a name that a request holds comes back as it was spelled."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class RequestError(Exception):
    """A request that is not answered as it asks; `code` is one of `wire.CODES`."""

    def __init__(self, code: str, message: str, *, retry_after: int = 1):
        super().__init__(message)
        self.code, self.retry_after = code, retry_after

    def response(self) -> Answer:
        status, _ = CODES[self.code]
        headers = {RETRY_AFTER: str(self.retry_after)} if status == 503 else {}
        if self.code == "unauthorized":
            headers["WWW-Authenticate"] = "Bearer"
        return Answer(error_to_json(self.code, str(self)), status, headers)
