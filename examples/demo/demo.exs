# An Elixir app hands real data to a Python worker through shared memory and checks what comes back.
#
#     mix run --no-start examples/demo/demo.exs FILE        (make demo FILE=path)
#
# DEMO_QUICK=1 makes the measurements small and DEMO_OUT names another folder for the picture: for tests.

Code.require_file("load.exs", __DIR__)

alias Demo.{Leftovers, Live, Picture, Pipe, RoundTrip, Source, Worker}

quick? = System.get_env("DEMO_QUICK") == "1"

{sizes, repetitions, seconds} =
  if quick?, do: {[1_000_000], 3, 0.5}, else: {[1_000_000, 10_000_000, 100_000_000], 9, 3}

fail = fn reason ->
  IO.puts(:stderr, "demo: #{reason}")
  System.halt(1)
end

path =
  case System.argv() do
    [path] -> path
    _ -> fail.("which file? make demo FILE=path")
  end

source =
  case Source.read(path) do
    {:ok, source} -> source
    {:error, reason} -> fail.(reason)
  end

# A namespace of its own: whatever else uses shared memory on this machine is neither seen nor touched.
namespace = "demo-#{System.pid()}"
Application.put_env(:snakepit, :shared_memory, namespace: namespace)
Logger.configure(level: :warning)
{:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)

worker = Worker.start(Path.join(__DIR__, "worker.py"), namespace)
pipe = Pipe.start(Path.join(__DIR__, "pipe_worker.py"))

try do
  IO.puts("\n1. Real data: #{path}")
  Picture.run(worker, source, System.get_env("DEMO_OUT") || "demo-out")

  IO.puts(
    "\n2. The round trip Elixir -> Python -> Elixir, beside a pipe that carries the bytes\n"
  )

  RoundTrip.run(worker, pipe, sizes, repetitions)

  IO.puts("\n3. A live segment: Python writes at 1 kHz, Elixir is told of every change\n")
  Live.run(worker, seconds)
after
  Worker.stop(worker)
  Pipe.stop(pipe)
  :ok = Application.stop(:snakepit_shared_memory)
end

IO.puts("\n4. What is left in /dev/shm")

case Leftovers.of("/dev/shm", namespace) do
  [] -> IO.puts("  nothing")
  files -> fail.("left behind: #{Enum.join(files, ", ")}")
end
