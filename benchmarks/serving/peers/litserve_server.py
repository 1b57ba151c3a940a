"""LitServe: raw bodies in, as many workers as cores, batches if asked."""

# ruff: noqa: D101, D102 - the methods are LitServe's and the names say what they do
from typing import Annotated

import litserve as ls
from fastapi import Body, HTTPException, Response

from benchmarks.serving.peers.model import BATCH, PORT, WORKERS, Model, Undecodable

Photo = Annotated[bytes, Body(media_type="image/jpeg")]


class Embed(ls.LitAPI):
    def setup(self, device):
        self.model = Model()

    def decode_request(self, request: Photo):
        try:
            return self.model.decode(request)
        except Undecodable as error:
            raise HTTPException(400, str(error)) from None

    def batch(self, inputs):
        return inputs

    def predict(self, x):
        return self.model.run(x) if isinstance(x, list) else self.model.run([x])[0]

    def unbatch(self, output):
        return output

    def encode_response(self, output) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    api = Embed(max_batch_size=BATCH, batch_timeout=0.005 if BATCH > 1 else 0.0)
    server = ls.LitServer(
        api, accelerator="cpu", workers_per_device=WORKERS, timeout=False, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=PORT,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
