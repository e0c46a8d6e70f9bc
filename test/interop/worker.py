"""A worker as `workers_test.exs` needs one: requests in JSON, one a line, answered likewise.

    python worker.py NAMESPACE DIR

With ``"stop"`` in a request it says how far it has come, and waits there to be killed.
"""

import json
import os
import sys
from typing import Any

import numpy as np
import snakepit_shm

Request = dict[str, Any]
Answer = dict[str, Any]


def say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


class Worker:
    """What it can be asked for, by ``op``."""

    def __init__(self, namespace: str, folder: str) -> None:
        self.folder = folder
        self.place = {"namespace": namespace, "dir": folder}
        self.kept: list[Any] = []

    @staticmethod
    def reach(step: str, request: Request) -> None:
        if request.get("stop") == step:
            say({"at": step})
            sys.stdin.read()

    def share(self, request: Request) -> Answer:
        value: Any = bytes.fromhex(request["data"]) if "data" in request else None
        if "dtype" in request:
            value = np.full(request["shape"], request["fill"], request["dtype"])
        options = {key: request[key] for key in ("ttl", "name") if key in request}
        transfer = request.get("transfer", True)
        self.reach("asked", request)
        handle = snakepit_shm.share(value, transfer=transfer, **options, **self.place)
        self.reach("shared", request)
        return {"handle": handle}

    def dtypes(self, request: Request) -> Answer:
        """One value of each type and order, as numpy has them."""
        values = {
            "bool": np.array([True, False]),
            "f2": np.arange(3, dtype="<f2"),
            "c8": np.array([1 + 2j], "<c8"),
            "big": np.arange(3, dtype=">i4"),
            "time": np.array(["2026-01-02"], "<M8[D]"),
            "fortran": np.asfortranarray(np.arange(6, dtype="<i4").reshape(2, 3)),
            "scalar": np.float64(2.5),
        }
        share = snakepit_shm.share
        return {key: share(value, transfer=True, **self.place) for key, value in values.items()}

    def resolve(self, request: Request) -> Answer:
        value = np.asarray(snakepit_shm.resolve(request["handle"], dir=self.folder))
        if request.get("keep"):
            self.kept.append(value)
        return {"sum": float(value.sum()), "dtype": value.dtype.str, "shape": list(value.shape)}

    def borrow(self, request: Request) -> Answer:
        self.reach("asked", request)
        borrowed = snakepit_shm.borrow(request["loan"], dir=self.folder)
        with borrowed as array:
            self.reach("borrowed", request)
            array[: len(array) // 2] = request["fill"]
            self.reach("half", request)
            array[:] = request["fill"]
            self.reach("filled", request)
            if request.get("raise"):
                raise ArithmeticError("as asked")
        self.reach("sealed", request)
        return {"handle": borrowed.handle}

    def run(self, request: Request) -> Answer:
        """A block of a guide, in this worker's place."""
        os.environ["SNAKEPIT_SHM_NAMESPACE"] = self.place["namespace"]
        os.environ["SNAKEPIT_SHM_DIR"] = self.folder
        names = dict(request["variables"])
        exec(request["code"], names)
        return {"answer": names["answer"]}

    def step_down(self, request: Request) -> Answer:
        """Fills by the parts of `borrow`, and keeps the writer's place when it seals."""
        writer = snakepit_shm.attach_writer(request["loan"]["name"], **self.place)
        with writer.loan(4, "u1") as array:
            array[:] = request["fill"]
        self.reach("published", request)
        writer.seal()
        self.kept.append(writer)
        self.reach("kept", request)
        return {"handle": writer.handle()}


def main() -> None:
    worker = Worker(*sys.argv[1:])
    say({"pid": os.getpid()})
    for line in sys.stdin:
        request: Request = json.loads(line)
        try:
            say(getattr(worker, request["op"])(request))
        except (snakepit_shm.ShmError, ArithmeticError) as error:
            say({"error": getattr(error, "code", type(error).__name__)})


main()
