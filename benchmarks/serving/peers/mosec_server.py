"""mosec: with batches a stage that decodes and one that runs, without them one stage for both."""

# ruff: noqa: D101, D102 - the methods are mosec's and the names say what they do
from mosec import Server, ValidationError, Worker

from benchmarks.serving.peers.model import BATCH, WORKERS, Model, Undecodable


class Decode(Worker):
    def __init__(self):
        self.model = Model()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data):
        try:
            return self.model.decode(data)
        except Undecodable as error:
            raise ValidationError(str(error)) from None


class Run(Worker):
    resp_mime_type = "application/octet-stream"

    def __init__(self):
        self.model = Model()

    def forward(self, data):
        return self.model.run(data)

    def serialize(self, data: bytes) -> bytes:
        return data


class DecodeAndRun(Decode):
    resp_mime_type = "application/octet-stream"

    def forward(self, data):
        return self.model.run([super().forward(data)])[0]

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    server = Server()
    if BATCH > 1:
        server.append_worker(Decode, num=WORKERS)
        server.append_worker(Run, num=WORKERS, max_batch_size=BATCH, max_wait_time=5)
    else:
        server.append_worker(DecodeAndRun, num=WORKERS)
    server.run()
