"""A MONAI Label server with its `monaibundle` app."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from email import message_from_bytes
from pathlib import Path
from typing import NamedTuple

import nibabel as nib

from tests.clients.programs import clean_environ

STAND_INS = Path(__file__).parent / "stand_ins"
START_SECONDS, ANSWER_SECONDS = 200, 400


class Answer(NamedTuple):
    """What `POST /infer` answers."""

    label_names: dict[str, int]
    image: nib.Nifti1Image


class LabelServer:
    """A running server; use it in a `with` statement.

    Args:
        python: of the environment with MONAI Label.
        folder: for the app and the log.
        bundles: folders of bundles, which the server gets links to.
        studies: folder of images.
    """

    def __init__(self, python, folder, bundles, studies):
        self.python, self.studies, self.log = Path(python), studies, folder / "server.log"
        self.names = [bundle.name for bundle in bundles]
        self.app = folder / "app"
        app = self.python.parents[1] / "monailabel" / "sample-apps" / "monaibundle"
        shutil.copytree(app, self.app, ignore=shutil.ignore_patterns("model"))
        (self.app / "model").mkdir()
        for bundle in bundles:
            (self.app / "model" / bundle.name).symlink_to(bundle)

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [self.python, "-m", "monailabel.main", "start_server", "--app", self.app, "--studies", self.studies]
        command += ["--conf", "zoo_source", "local", "--conf", "models", ",".join(self.names)]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        environ = clean_environ(PYTHONPATH=str(STAND_INS), HOME=str(self.app.parent), MONAI_LABEL_ZOO_SOURCE="local")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=self.app.parent)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait(self):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.info()
            except OSError:
                time.sleep(0.5)
            else:
                return
        raise RuntimeError(f"the server did not start:\n{self.tail()}")

    def tail(self, characters=4000):
        """Return the end of the log."""
        return self.log.read_text(errors="replace")[-characters:]

    def ask(self, path, *, data=None, headers=None, **query):
        """Return headers and body of the answer; `data` makes it a POST."""
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, data=data, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            time.sleep(0.5)  # the server answers first and writes its log then
            raise RuntimeError(f"{error.code} of {path}:\n{self.tail()}") from error

    def info(self):
        """Return what the server tells a viewer, such as the names of labels."""
        return json.loads(self.ask("/info/")[1])

    def infer(self, model, image, **params):
        """Segment an image of the studies or at a path."""
        form = urllib.parse.urlencode({"params": json.dumps({"device": "cpu", **params})}).encode()
        headers, body = self.ask(f"/infer/{model}", data=form, image=image, output="all")
        message = message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}
        content = zlib.decompress(parts["image"].get_payload(decode=True), 31)
        names = json.loads(parts["params"].get_payload())["label_names"]
        return Answer(names, nib.Nifti1Image.from_bytes(content))

    def train(self, model, **params):
        """Train to the end."""
        body = json.dumps({"device": "cpu", "name": "test", **params}).encode()
        headers = {"Content-Type": "application/json"}
        self.ask(f"/train/{model}", data=body, headers=headers, run_sync="true")
