"""FastAPI as most people write it: decode and run in the thread pool, no batching."""

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool

from benchmarks.serving.peers.model import BATCH, PORT, Model, Undecodable

app = FastAPI()
model = Model(threads=BATCH)


def work(data: bytes) -> bytes:
    return model.run([model.decode(data)])[0]


@app.post("/embed")
async def embed(request: Request) -> Response:
    try:
        found = await run_in_threadpool(work, await request.body())
    except Undecodable as error:
        raise HTTPException(400, str(error)) from None
    return Response(found, media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, port=PORT, access_log=False, log_level="warning")
