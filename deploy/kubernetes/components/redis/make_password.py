"""Make the Secret with the password of Redis, unless there is one: `make_password.py ACCOUNT`.

ACCOUNT is the folder with the `token` and `namespace` to act under, and the API server's `ca.crt`.
The password is made in the cluster and nowhere else: no file, and no person, has to hold it.
"""

import json
import os
import secrets
import ssl
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

NAME = "foveal-redis"
EXISTS = 409


def main(account: Path) -> None:
    """Ask the API server to create the Secret; one that is there stays as it is."""
    namespace = (account / "namespace").read_text().strip()
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    password = secrets.token_urlsafe(32)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": NAME},
        "stringData": {"password": password, "url": f"redis://:{password}@{NAME}:6379/0"},
    }
    request = Request(
        f"https://{host}:{port}/api/v1/namespaces/{namespace}/secrets",
        data=json.dumps(secret).encode(),
        headers={
            "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    context = ssl.create_default_context(cafile=account / "ca.crt")
    try:
        urlopen(request, timeout=10, context=context).close()  # noqa: S310
    except HTTPError as error:
        if error.code != EXISTS:
            sys.exit(f"the API server refused to create the Secret {NAME}: {error}")
        print(f"the Secret {NAME} is there and stays as it is")
    except URLError as error:
        sys.exit(f"the API server at {host}:{port} cannot be reached: {error.reason}")
    else:
        print(f"made the Secret {NAME}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
