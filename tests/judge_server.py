"""A server on this machine that speaks OpenAI's protocol, as generative judges are asked: well, badly and slowly."""

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Reply = str | tuple[int, dict[str, str], str]  # the text of an answer; or status, headers and body


class JudgeServer(ThreadingHTTPServer):
    """`reply(request)` gives the answer; `requests` are those that came."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict], Reply], port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.reply, self.requests, self.lock = reply, [], threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
        reply = self.server.reply(request)
        if isinstance(reply, str):
            message = {"role": "assistant", "content": reply}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            reply = (200, {"Content-Type": "application/json"}, json.dumps(body | {"usage": usage}))
        status, headers, body = reply
        if "X-Drop" in headers:  # the connection ends before the answer
            self.close_connection = True
            return
        try:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body.encode()))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())
        except OSError:  # whoever asked has gone
            pass

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(reply: Callable[[dict], Reply]):
    """A `JudgeServer` while the block runs."""
    server = JudgeServer(reply)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def texts(request: dict) -> str:
    content = request["messages"][0]["content"]
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def pictures(request: dict) -> list[np.ndarray]:
    """The images of a request, in order."""
    content = request["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    files = (io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in urls)
    return [np.asarray(Image.open(file)) for file in files]


def brightness(picture: np.ndarray) -> float:
    return float(picture.mean())


def by_content(request: dict, delay: float = 0.0) -> str:
    """A score, or a verdict, that depends on the pictures and on nothing else."""
    time.sleep(delay)
    if '"winner"' in texts(request):
        first, second = pictures(request)[-2:]
        winner = "tie" if brightness(first) == brightness(second) else "AB"[brightness(second) > brightness(first)]
        return json.dumps({"reasoning": "by its light", "winner": winner})
    digest = hashlib.sha256(pictures(request)[-1].tobytes()).digest()
    return json.dumps({"reasoning": "by its bytes", "score": 1 + digest[0] % 4})
