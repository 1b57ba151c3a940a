"""Stands in for Triton's ONNX Runtime backend, of which no build is to be had for tests.

A Python-based backend: Triton itself runs it (in another environment than the tests') for every
model whose configuration says `backend: "onnxruntime"`. Server, batcher and protocol are real.
Files beside a model's configuration change how it runs: `seconds` holds how long every run takes
longer, where `held` is, every run makes a file `begun` and waits until `held` is gone, and where
`broken` is, every run fails and adds a letter to it.
"""

import json
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

ONE = (1, 1)


class TritonPythonModel:
    def initialize(self, args):
        self._folder = Path(args["model_repository"])
        config = json.loads(args["model_config"])
        self._outputs = [output["name"] for output in config["output"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = ONE
        name = config["default_model_filename"] or "model.onnx"
        graph = self._folder / args["model_version"] / name
        self._session = onnxruntime.InferenceSession(str(graph), options)

    def execute(self, requests):
        """Run all requests as one batch, as the real backend does with what was batched."""
        with suppress(FileNotFoundError):
            time.sleep(float((self._folder / "seconds").read_text()))
        if (self._folder / "held").exists():
            (self._folder / "begun").touch()
            while (self._folder / "held").exists():
                time.sleep(0.005)
        if (self._folder / "broken").exists():
            # Healed meanwhile, it must not be there again.
            with suppress(FileNotFoundError), (self._folder / "broken").open("r+") as failures:
                failures.seek(0, 2)
                failures.write("x")
            failure = triton.InferenceResponse(error=triton.TritonError("the backend is broken"))
            return [failure for _ in requests]
        batches = [triton.get_input_tensor_by_name(r, "images").as_numpy() for r in requests]
        wanted = {name for request in requests for name in request.requested_output_names()}
        names = [name for name in self._outputs if name in wanted]
        arrays = self._session.run(names, {"images": np.concatenate(batches)})
        ends = np.cumsum([len(batch) for batch in batches])[:-1]
        parts = {n: np.split(array, ends) for n, array in zip(names, arrays, strict=True)}
        return [
            triton.InferenceResponse(
                [triton.Tensor(n, parts[n][row]) for n in names if n in r.requested_output_names()]
            )
            for row, r in enumerate(requests)
        ]
