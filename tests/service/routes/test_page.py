import httpx
import pytest


@pytest.mark.parametrize("path", ["/", "/docs", "/web/app.js", "/web/swagger-ui-bundle.js"])
def test_the_page_is_framed_by_nobody_and_taken_for_nothing_else(
    client: httpx.Client, path: str
) -> None:
    headers = client.get(path).headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]
