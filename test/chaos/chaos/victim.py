"""Python's reader of a segment that is going to be damaged: through numpy, as `peer/src/victim.rs`.

python -m chaos.victim NAMESPACE DIR NAME
"""

from __future__ import annotations

import json
import os
import sys
import threading

import numpy as np
import snakepit_shm as shm


def main(namespace: str, folder: str, name: str) -> None:
    """Reads until stdin ends, and tells each kind of answer once."""
    stop = threading.Event()

    def until_stdin() -> None:
        while os.read(0, 1):
            pass
        stop.set()

    threading.Thread(target=until_stdin, daemon=True).start()
    told = set()
    reader = shm.attach(name, namespace=namespace, dir=folder)
    while not stop.wait(0.002):
        try:
            value = reader.numpy()
            whole = value.shape == (60_000,) and bool(np.all(value == 7))
            answer = "ok" if whole else "damaged value"
        except shm.ShmError as error:
            answer = error.code
        if answer not in told:
            told.add(answer)
            print(json.dumps({"answer": answer}), flush=True)
    reader.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
