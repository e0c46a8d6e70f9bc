# What README and CI call. Each target is a short script in scripts/, so that everything here also runs by hand.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The BEAM warns under a locale that is not UTF-8.
export LC_ALL := C.UTF-8
export ELIXIR_ERL_OPTIONS := +fnu

.PHONY: help setup demo example test bench bench-check bench-peers faults chaos lint fmt clean doc \
        test-rust test-counts test-loom test-elixir test-python test-torch test-free-threaded test-wheel test-interop test-readme test-demo test-example test-chaos test-trixie

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing, build everything (seconds when there is nothing to do)
	@scripts/setup.sh

demo: setup ## A photograph from Elixir to Python and back, and the pipe beside it (FILE=path for your own)
	@scripts/demo.sh "$(FILE)"

example: setup ## An application with a pool of Python workers: real work, a worker killed, JSON and a pipe beside it
	@scripts/example.sh

test: setup ## Everything that proves it right: lint, all tests, nothing left behind
	@scripts/test.sh

test-rust: setup ## Rust unit, property, cross-process and doc tests
	@scripts/test.sh rust

test-counts: setup ## The instructions of a read and a write beside the kept counts (COUNTS_ARGS=--keep keeps them)
	@$(if $(COUNTS_ARGS),.venv/bin/python bench/counts.py $(COUNTS_ARGS),scripts/test.sh counts)

test-loom: setup ## The protocol under every interleaving that loom can find
	@scripts/test.sh loom

test-elixir: setup ## ExUnit
	@scripts/test.sh elixir

test-python: setup ## pytest
	@scripts/test.sh python

test-torch: setup ## Tensors through the Python package, with Debian's torch, which is installed where it is missing
	@scripts/test.sh torch

test-free-threaded: setup ## The Python package without the interpreter lock, on what FREE_THREADED_PYTHON names
	@scripts/test.sh free-threaded

test-wheel: setup ## The Python wheel, built, installed with pip in a clean environment, and used there
	@scripts/test.sh wheel

test-interop: setup ## Each of Rust, Elixir and Python writes, the two others read
	@scripts/test.sh interop

test-readme: setup ## Every code block of the README, run
	@scripts/test.sh readme

test-demo: setup ## The demo's own parts, and the demo on small data
	@scripts/test.sh demo

test-example: setup ## The example application on small data
	@scripts/test.sh example

test-trixie: setup ## ExUnit on the Elixir of Debian 13, in a root of its own (needs root)
	@scripts/test.sh trixie

test-chaos: setup ## 20 seconds of chaos
	@scripts/test.sh chaos

bench: setup ## Every measured promise beside its yardstick (BENCH_ARGS=--quick for a look)
	@bench/run.sh $(BENCH_ARGS)

bench-check: setup ## The ratios of now beside the kept ones; fails when one is worse than its noise allows
	@.venv/bin/python bench/check.py $(CHECK_ARGS)

bench-peers: setup ## Other people's shared memory, pipes, sockets and gRPC beside ours (PEERS_ARGS=--quick for a look)
	@.venv/bin/python bench/peers/run.py $(PEERS_ARGS)

faults: setup ## Every fault of docs/faults.md at full scale: 1,000 kills, 1,000 readers, 10,000 refused creates (minutes)
	@SNAKEPIT_SHM_FULL=1 cargo test --release -p snakepit-shm --test faults -- --nocapture --test-threads=1
	@SNAKEPIT_WORKER_LIVES=1000 mix test test/interop/workers_test.exs --only lives

chaos: setup ## Processes in three languages, a killer among them, and a judge: 3 minutes (HOURS=24 for long)
	@scripts/chaos.sh

lint: setup ## Formatters, linters and type checks, all as errors
	@scripts/test.sh lint

fmt: setup ## Format everything
	@scripts/fmt.sh

doc: setup ## The API documentation, under target/doc
	@scripts/doc.sh

clean: ## Remove everything that was built
	@scripts/clean.sh
