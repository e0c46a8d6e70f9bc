"""Builds the peers, measures them beside us, and keeps what was found: `make bench-peers`.

    python bench/peers/run.py [--quick] [--only SECTION[,SECTION...]] [--results DIR]

    --quick     a short run: proves that everything works, figures only indicative; kept in
                target/peers/quick, not in bench/results
    --only      some of: one-thread two-processes near-far crowd segments messages python grpc
                port workers
    --results   where peers.json, peers.md and the plots go

A section replaces what its last run left in peers.json; the others stay. Each has the date, the
commit and the machine of its own run. A peer that cannot be built is named with the reason. Fails
when a section could not be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "bench" / "peers"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "peers"
BINARY = TARGET / "release" / "snakepit-shm-peers"
VENV = TARGET / "venv"
SHM = Path("/dev/shm")
RUST = ["one-thread", "two-processes", "near-far", "crowd", "segments", "messages"]
PYTHON = {"python": "shared_memory_bench.py", "grpc": "grpc_bench.py"}
ELIXIR = {"port": "port_bench.exs", "workers": "worker_bench.exs"}
SECTIONS = [*RUST, *PYTHON, *ELIXIR]
FEATURES = {
    "iceoryx2": ["iceoryx2"],
    "mmap-sync": ["mmap-sync"],
    "seqlock": ["seqlock"],
    "shared-memory": ["shared_memory", "raw_sync"],
}
LIMIT = 900
"""Seconds after which a section is ended: something hangs."""


def cargo(features: list[str]) -> subprocess.CompletedProcess[str]:
    """Builds the bench with these peers."""
    command = [
        "cargo",
        "build",
        "--release",
        "--locked",
        "--manifest-path",
        str(HERE / "Cargo.toml"),
    ]
    command += ["--target-dir", str(TARGET), "--no-default-features"]
    command += ["--features", ",".join(features)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def build() -> dict[str, str]:
    """Builds the bench with every peer that can be built; why the others cannot."""
    built = cargo(list(FEATURES))
    if built.returncode == 0:
        return {}
    print("not all peers can be built; trying one by one", flush=True)
    able, failed = [], {}
    for feature in FEATURES:
        tried = cargo([feature])
        if tried.returncode == 0:
            able.append(feature)
        else:
            errors = [line for line in tried.stderr.splitlines() if line.startswith("error")]
            failed[feature] = (errors or tried.stderr.splitlines()[-1:] or ["no message"])[0]
    built = cargo(able)
    if built.returncode:
        sys.exit(f"the bench itself cannot be built:\n{built.stderr[-3000:]}")
    return failed


def venv() -> Path:
    """A Python with what requirements.txt names; our package comes by PYTHONPATH."""
    python = VENV / "bin" / "python"
    wanted = (HERE / "requirements.txt").read_text()
    stamp = VENV / "requirements.done"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
        stamp.write_text(wanted)
    return python


def version_of(feature: str) -> str:
    """The versions that the lock file names for the crates of a feature."""
    text = (HERE / "Cargo.lock").read_text()
    found = []
    for crate in FEATURES[feature]:
        at = text.index(f'name = "{crate}"\nversion = "')
        found.append(f"{crate} {text[at:].split(chr(34))[3]}")
    return ", ".join(found)


def read(path: str) -> str:
    """A small file of the kernel."""
    return Path(path).read_text().strip()


def machine(quick: bool) -> dict[str, Any]:
    """Where and when a section was run."""
    lines = read("/proc/cpuinfo").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit.stdout.strip() or "unknown",
        "quick": quick,
    }


def short(value: Any) -> Any:
    """Numbers to six digits: more was not measured."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items()}
    return value


def text_of(report: dict[str, Any]) -> str:
    """As JSON, a figure a line: what changed shows in git."""
    sections = []
    for name in (section for section in SECTIONS if section in report["sections"]):
        entry = report["sections"][name]
        lists = []
        for field in ("figures", "skipped"):
            lines = ",\n".join(f"    {json.dumps(short(item))}" for item in entry[field])
            lists.append(f'   "{field}": [\n{lines}\n   ]')
        rest = {key: value for key, value in entry.items() if key not in ("figures", "skipped")}
        fields = [f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in rest.items()]
        sections.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(fields + lists) + "\n  }")
    head = {key: value for key, value in report.items() if key != "sections"}
    fields = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    fields.append(' "sections": {\n' + ",\n".join(sections) + "\n }")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def command_of(section: str, quick: bool) -> list[str]:
    """What runs a section."""
    flags = ["--quick"] if quick else []
    if section in RUST:
        return [str(BINARY), section, *flags]
    if section in PYTHON:
        return [str(venv()), str(HERE / PYTHON[section]), *flags]
    return ["mix", "run", "--no-start", str(HERE / ELIXIR[section]), *flags]


def measure(command: list[str], environment: dict[str, str]) -> dict[str, str]:
    """Runs it as a group of its own, of which nothing is left; whether it failed."""
    with subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True) as process:
        try:
            status = process.wait(LIMIT)
        finally:
            # All that it started is in its group: this group's id is the process's own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return {"failed": f"ended with status {status}"} if status else {}


def run(section: str, quick: bool) -> dict[str, Any]:
    """One section's figures, what it skipped, and whether it failed."""
    entry: dict[str, Any] = {"run": machine(quick), "figures": [], "skipped": []}
    with (
        tempfile.TemporaryDirectory() as parts,
        tempfile.TemporaryDirectory(
            prefix="snakepit-bench-peers-", dir=SHM, ignore_cleanup_errors=True
        ) as place,
    ):
        environment = {
            **os.environ,
            "SNAKEPIT_BENCH_DIR": place,
            "SNAKEPIT_BENCH_PARTS": parts,
            "SNAKEPIT_BENCH_ECHO": str(BINARY),
            "SNAKEPIT_BENCH_PEERS_PYTHON": str(venv()),
            "PYTHONPATH": str(ROOT / "native" / "python" / "python"),
        }
        try:
            entry.update(measure(command_of(section, quick), environment))
        except (OSError, subprocess.SubprocessError) as error:
            entry["failed"] = str(error)
        finally:
            # Some peers put their objects beside the directory, named for it.
            for left in SHM.glob(f"{Path(place).name}-*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        for field, name in (("figures", ".json"), ("skipped", ".skipped.json")):
            path = Path(parts) / f"{section}{name}"
            if path.exists():
                entry[field] = json.loads(path.read_text())
    if not entry["figures"] and "failed" not in entry:
        entry["failed"] = "it measured nothing"
    return entry


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a short run")
    parser.add_argument("--only", help=f"some of: {' '.join(SECTIONS)}")
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    sections = given.only.split(",") if given.only else SECTIONS
    if unknown := [section for section in sections if section not in SECTIONS]:
        sys.exit(f"no section {' '.join(unknown)}; there are: {' '.join(SECTIONS)}")
    results = given.results or (TARGET / "quick" if given.quick else ROOT / "bench" / "results")
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    results.mkdir(parents=True, exist_ok=True)
    kept = results / "peers.json"
    report = json.loads(kept.read_text()) if kept.exists() else {"sections": {}}
    not_built = build()
    report["versions"] = {feature: version_of(feature) for feature in FEATURES}
    report["not_built"] = not_built
    for feature, reason in not_built.items():
        print(f"not built: {feature}: {reason}", flush=True)
    failed = []
    for section in sections:
        print(f"\n== {section}", flush=True)
        entry = run(section, given.quick)
        report["sections"][section] = entry
        if "failed" in entry:
            failed.append(f"{section} ({entry['failed']})")
        kept.write_text(text_of(report))
    page = [sys.executable, str(ROOT / "bench" / "performance.py"), "--results", str(results)]
    if given.quick or given.results:
        page.append("--no-page")
    if subprocess.run(page, check=False).returncode:
        failed.append("the report")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
