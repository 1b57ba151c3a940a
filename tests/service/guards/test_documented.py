"""What the OpenAPI document says of keys, held against the gateway that it describes."""

import re
from pathlib import Path

import pytest

from service.guards.keys import make
from tests.service.gateways import Serve


@pytest.mark.parametrize("open_metrics", [True, False])
def test_every_route_needs_a_key_as_the_document_says(
    serve: Serve, tmp_path: Path, open_metrics: bool
) -> None:
    file = tmp_path / "keys"
    file.write_text(make("alice", "read")[1].line())
    with serve(keys_file=file, open_metrics=open_metrics) as client:
        document = client.get("/openapi.json").json()
        bearer, header = document["components"]["securitySchemes"].values()
        assert (bearer["scheme"], header["name"]) == ("bearer", "X-API-Key")
        said, found = {}, {}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                name = f"{method} {path}"
                said[name] = bool(operation.get("security", document["security"]))
                answer = client.request(method, re.sub("{.*?}", "x", path))
                found[name] = answer.status_code == 401
    assert said == found
    assert set(said.values()) == {True, False}
    assert said["get /metrics"] != open_metrics


def test_without_keys_none_is_asked_for(serve: Serve) -> None:
    with serve() as client:
        document = client.get("/openapi.json").json()
    assert "security" not in document
    assert "securitySchemes" not in document["components"]
