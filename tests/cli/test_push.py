"""`jrm push`: what goes to the hub, against a server that speaks the hub's protocol, and comes back as a model."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from PIL import Image

from jrm_plugin.evaluation.model_card import Accuracy, ModelCard
from jrm_plugin.model.checkpoint import built_in_folder

NAME = "somebody/my-jrm"
COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as one model needs: a repository is made, filled by one commit, and read."""

    files: dict[str, bytes] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self._answer({"url": f"http://{self.headers['Host']}/{NAME}"})
        elif self.path == "/api/validate-yaml":  # of a card
            content = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self._answer({"errors": [], "warnings": []} if content["library_name"] else {}, 200)
        elif self.path == f"/api/models/{NAME}/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif self.path == f"/api/models/{NAME}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"http://{self.headers['Host']}/{NAME}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._answer({}, 404)

    def do_GET(self):
        content = self.files.get(
            self.path.removeprefix(f"/{NAME}/resolve/main/").removeprefix(f"/{NAME}/resolve/{COMMIT}/")
        )
        if "/tree/" in self.path:  # of folders, of which there are none
            self._answer([])
        elif self.path.startswith("/api/"):
            self._answer({"sha": COMMIT, "id": NAME, "siblings": [{"rfilename": name} for name in self.files]})
        elif content is None:
            self._answer({}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            tag = hashlib.sha256(content).hexdigest()
            self._send(content, 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})

    do_HEAD = do_GET

    def _answer(self, content, code=200, headers=None):
        self._send(json.dumps(content).encode(), code, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, code: int, headers: dict[str, str]):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def run_folder(tmp_path):
    """A folder as a run leaves it: a model, its card, and what is the run's own."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in built_in_folder("jrm-tiny").iterdir():
        if path.name != "README.md":
            (folder / path.name).write_bytes(path.read_bytes())
    card = ModelCard(str(folder), {"backbone": "qwen3_vl"}, {}, {}, {}, [Accuracy("a|b", "overall", 9, 10)], 20)
    (folder / "README.md").write_text(str(card))
    (folder / "jrm_train.json").write_text("{}")
    (folder / "training_args.bin").write_text("x")
    (folder / "checkpoint-1").mkdir()
    return folder


def test_a_pushed_model_is_loaded_by_the_code_of_its_card(hub, run_folder, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
    environment["HF_HOME"] = str(tmp_path / "cache")

    def run(*command):
        finished = subprocess.run(
            [sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    assert "files were pushed" in run("-m", "jrm_plugin.cli", "push", str(run_folder), NAME)
    assert {"config.json", "model.safetensors", "jrm_processor.json", "README.md"} <= set(Hub.files)
    assert not {"jrm_train.json", "training_args.bin"} & set(Hub.files)
    card = Hub.files["README.md"].decode()
    assert str(run_folder) not in card and f"\n# {NAME}\n" in card and f"- name: {NAME}\n" in card
    assert "| a\\|b | overall | 0.900 (0.596 to 0.982) | 10 |" in card and "Measured at step 20." in card
    for name in ("source", "edited"):
        Image.new("RGB", (48, 48)).save(tmp_path / f"{name}.png")
    assert "'overall'" in run("-c", card.split("```python\n")[1].split("```")[0])


def test_what_is_not_pushed(refused, run_folder, tmp_path):
    assert "it has no jrm_processor.json" in refused("push", tmp_path, NAME)
    assert "must be named owner/name" in refused("push", run_folder, "my-jrm")
    (run_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/models/base"}')
    assert "adapters of /models/base, which only this machine has" in refused("push", run_folder, NAME)
    (run_folder / "adapter_config.json").unlink()
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert f"cannot be pushed to {NAME}" in refused("push", run_folder, NAME, environment=nowhere)
