"""Python's side of the interop tests: requests in JSON, one a line, answered likewise.

See `peers.exs` for what can be asked. Bytes travel as hexadecimal digits.

    python peer.py NAMESPACE DIR
"""

import json
import sys
from typing import Any

import numpy as np
import snakepit_shm

Request = dict[str, Any]
Answer = dict[str, Any]


class Peer:
    """The writers and readers of this process, by name."""

    def __init__(self, namespace: str, folder: str) -> None:
        self.place = {"namespace": namespace, "dir": folder}
        self.writers: dict[str, snakepit_shm.Writer] = {}
        self.readers: dict[str, snakepit_shm.Reader] = {}

    def create(self, request: Request) -> Answer:
        name, size, slots = request["name"], request["size"], request["slots"]
        self.writers[name] = snakepit_shm.create(name, size, slots=slots, **self.place)
        return {}

    def write(self, request: Request) -> Answer:
        return {"version": self.writers[request["name"]].write(self.value(request))}

    @staticmethod
    def value(request: Request) -> Any:
        data = bytes.fromhex(request["data"])
        if "dtype" in request:
            return np.frombuffer(data, request["dtype"]).reshape(request["shape"])
        return data

    def write_at(self, request: Request) -> Answer:
        writer = self.writers[request["name"]]
        return {"version": writer.write_at(request["offset"], bytes.fromhex(request["data"]))}

    def seal(self, request: Request) -> Answer:
        self.writers[request["name"]].seal()
        return {}

    def share(self, request: Request) -> Answer:
        value = self.value(request)
        return {"handle": snakepit_shm.share(value, name=request["name"], **self.place)}

    def take_over(self, request: Request) -> Answer:
        name = request["name"]
        self.writers[name] = snakepit_shm.attach_writer(name, **self.place)
        return {}

    def hand_over(self, request: Request) -> Answer:
        self.writers.pop(request["name"]).release()
        return {}

    def end(self, request: Request) -> Answer:
        if request["name"] in self.writers:
            self.writers.pop(request["name"]).close()
        else:
            snakepit_shm.remove(request["name"], **self.place)
        return {}

    def attach(self, request: Request) -> Answer:
        self.readers[request["name"]] = snakepit_shm.attach(request["name"], **self.place)
        return {}

    def read(self, request: Request) -> Answer:
        reader = self.readers[request["name"]]
        data, info = reader.read(), reader.info()
        return {
            "data": data.hex(),
            "version": reader.last_version,
            "dtype": info.dtype,
            "shape": list(info.shape),
        }

    def wait(self, request: Request) -> Answer:
        reader = self.readers[request["name"]]
        return {"version": reader.wait(request["since"], timeout=20)}

    def detach(self, request: Request) -> Answer:
        self.readers.pop(request["name"]).close()
        return {}

    def resolve(self, request: Request) -> Answer:
        value = np.asarray(snakepit_shm.resolve(request["handle"], dir=self.place["dir"]))
        return {"data": value.tobytes().hex(), "dtype": value.dtype.str, "shape": value.shape}


def main() -> None:
    peer = Peer(*sys.argv[1:])
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "stop":
            return
        try:
            answer = getattr(peer, request["op"])(request)
        except snakepit_shm.ShmError as error:
            answer = {"error": error.code, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
