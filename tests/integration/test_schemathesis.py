"""The OpenAPI document and the application agree, for requests that keep to it and that do not."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis import BaseSchema, Case, HookContext
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import ScenarioRecorder

from service.app import create_app
from service.bundle import Bundle
from service.settings import Settings
from tests.bundles import make_bundle
from tests.service.gateways import b64, photograph, serving

# Schemas cannot say which bytes are an image, that a size is a multiple of the patch or that an id
# exists: data that keeps to them may still be refused, as any other.
REFUSED = [400, 404, 409, 413, 415, 422, 504]
CONFIG = {
    "checks": {
        # 504 is the answer to who asks for one within a millisecond.
        "not_a_server_error": {"expected-statuses": ["2xx", "4xx", 504]},
        "positive_data_acceptance": {"expected-statuses": ["2xx", *REFUSED]},
        "negative_data_rejection": {"expected-statuses": [*REFUSED, 405]},
    },
    "phases": {"stateful": {"enabled": False}},
    "suppress-health-check": ["all"],
    "generation": {"max-examples": 10, "deterministic": True, "database": "none"},
}

schemathesis.openapi.format("binary", st.sampled_from([photograph(), b"text", b""]))
schemathesis.openapi.format("byte", st.sampled_from([b64(photograph())["b64"], "dGV4dA==", ""]))


@schemathesis.serializer("image/*")
def send_bytes(_: schemathesis.SerializationContext, value: Any) -> dict[str, Any]:
    return {"data": value if isinstance(value, bytes) else str(value).encode()}


def told(recorder: ScenarioRecorder) -> Iterator[str]:
    """Every check that failed, with the request that failed it."""
    for checks in recorder.checks.values():
        for check in checks:
            if found := check.failure_info:
                sent = found.code_sample[:400]
                yield f"{recorder.label} {check.name}: {found.failure}\n  {sent}"


def aim(document: BaseSchema, bundle: Bundle) -> None:
    """Have requests name a model and a collection that are there, or few would get far."""

    @document.hook
    def map_case(_: HookContext, case: Case) -> Case:
        if "name" in case.path_parameters:
            loading = case.path.startswith("/v2/repository")
            case.path_parameters["name"] = "other" if loading else bundle.manifest.name
        if case.method == "DELETE" and case.path_parameters.get("collection") == "default":
            case.path_parameters["collection"] = "another"
        if "version" in case.path_parameters:
            case.path_parameters["version"] = bundle.digest
        for part in (case.query, case.body):
            for option, known in (("model", bundle.manifest.name), ("collection", "default")):
                if isinstance(part, dict) and isinstance(part.get(option), str):
                    part[option] = known
        return case


def test_no_request_breaks_the_documented_answers(bundle: Bundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "other", "other")
    app = create_app(Settings(model=bundle.path, repository=tmp_path, data=tmp_path, threads=2))
    failures: list[str] = []
    answered: dict[str, set[int]] = defaultdict(set)
    with serving(app) as client:
        client.post("/collections/default/items", files=[("images", photograph())])
        document = schemathesis.openapi.from_url(
            f"{client.base_url}/openapi.json", config=SchemathesisConfig.from_dict(CONFIG)
        )
        aim(document, bundle)
        for event in from_schema(document).execute():
            match event:
                case ScenarioFinished(recorder=recorder):
                    failures += told(recorder)
                    for sent in recorder.interactions.values():
                        if sent.response:
                            answered[recorder.label].add(sent.response.status_code // 100)
                case NonFatalError():
                    failures.append(f"{event.label}: {event.info}")
                case FatalError():
                    raise event.exception
    assert not failures, "\n\n".join(failures)
    # Neither all refused nor all accepted: else nothing would have been tried.
    one_sided = {name for name, statuses in answered.items() if not {2, 4} <= statuses}
    # What there is to delete depends on what came before.
    assert {name for name in one_sided if not name.startswith("DELETE")} == set()
