"""The server against its own description: schemathesis makes requests of all kinds from /openapi.json."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from consilience.data.documents import Document
from consilience.retrieval.index import Index
from consilience.serving.app import create_app
from consilience.serving.settings import Settings
from tests.serving.conftest import DOCUMENTS
from tests.serving.served import served
from tests.serving.test_injection import state

pytestmark = pytest.mark.slow

TOKEN = "a-token-for-schemathesis"


@pytest.mark.parametrize("write", [False, True], ids=["reading", "writing"])
@pytest.mark.parametrize("token", [None, TOKEN], ids=["open", "token"])
def test_every_answer_is_as_described(tmp_path: Path, write: bool, token: str | None) -> None:
    pytest.importorskip("schemathesis")
    place = tmp_path / "index"
    with Index.create(place) as index:
        index.add([*DOCUMENTS, Document("0", "zero")])
    before = state(place)
    settings = Settings(write=write, rate=0, tokens=(token,) if token else ())
    with served(create_app(place, settings), token) as client:
        address = f"http://127.0.0.1:{client.port}/openapi.json"
        options = ["--max-examples", "25", "--seed", "1", "--no-color", "--warnings", "off"]
        # whether a store or a field exists is not in the description: such requests are valid there, and refused
        options += ["--exclude-checks", "positive_data_acceptance", "--generation-database", "none"]
        if token:
            options += ["--header", f"Authorization: Bearer {token}"]
        command = [sys.executable, "-m", "schemathesis.cli", "run", address, *options]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
        statuses = client("GET", "/metrics").text
        assert 'status="500"' not in statuses and 'route="/search",status="200"' in statuses
    if not write:
        assert state(place) == before
