"""How a server is set up."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from jrm_plugin.errors import JRMError

MIB = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """Limits and permissions of a server; the model is loaded by who makes the app.

    Args:
        model: its name, as answers and `GET /v1/models` give it.
        digest: what tells its weights from others', likewise; None where they have none.
        token: what requests must carry as `Authorization: Bearer …`; None: nothing.
        timeout: seconds after which a request is answered 504, whatever its client would wait.
        max_body_bytes: of one request.
        max_bodies_bytes: of all requests that are being read, wait or are computed; past it 503.
        max_samples: of one request.
        max_waiting: samples that wait; past it 503.
        max_images: of one sample.
        max_image_pixels: of one image; larger ones are their sample's error.
        max_text: characters of one sample.
        max_new_tokens: of one critique.
        batch_tokens: tokens of a batch; one sample may have more.
        batch_window: seconds that a request waits for others to be computed with.
        allow_urls: None: images by URL are refused; `public`: taken from addresses that are not private; `any`.
        allow_paths: a folder whose files requests may name as `file:PATH`.
        pickle_wires: names of `app.PICKLE_WIRES`: forms whose requests are pickles.
        ui: whether there is a page at `/ui`, on which images are scored by hand.
        log_requests: whether the log has what requests ask for and errors in full.

    Raises:
        JRMError: a value is out of its range.
    """

    model: str
    digest: str | None = None
    token: str | None = field(default=None, repr=False)
    timeout: float = 240.0
    max_body_bytes: int = 64 * MIB
    max_bodies_bytes: int = 1024 * MIB
    max_samples: int = 256
    max_waiting: int = 4096
    max_images: int = 16
    max_image_pixels: int = 2**25
    max_text: int = 2**15
    max_new_tokens: int = 2048
    batch_tokens: int = 2**15
    batch_window: float = 0.01
    allow_urls: str | None = None
    allow_paths: Path | None = None
    pickle_wires: tuple[str, ...] = ()
    ui: bool = False
    log_requests: bool = False

    def __post_init__(self) -> None:
        for name in (setting.name for setting in fields(self) if setting.type is int):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise JRMError(f"{name} of the server must be a whole number of at least 1, not {value!r}.")
        if not 0 < self.timeout < math.inf or not 0 <= self.batch_window < 10:
            raise JRMError(
                f"timeout of the server must be above 0 and batch_window in [0, 10), in seconds, not {self.timeout} "
                f"and {self.batch_window}."
            )
        if self.token is not None and (len(self.token) < 8 or not self.token.isascii() or " " in self.token):
            raise JRMError("the server's token must have at least 8 characters, ASCII without spaces.")
        if self.allow_urls not in (None, "public", "any"):
            raise JRMError(f"allow_urls must be public or any, or left out, not {self.allow_urls!r}.")
        if self.allow_paths is not None and not self.allow_paths.is_dir():
            raise JRMError(f"the folder {self.allow_paths} of allowed paths is not there; name one, or leave it out.")
