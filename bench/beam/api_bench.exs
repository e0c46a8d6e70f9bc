# Times the Elixir API beside bare calls that move the same bytes.
#
# Run by bench/run.sh, as `mix run --no-start bench/beam/api_bench.exs`. Ours and the yardsticks
# alternate in short batches; each pair of batches gives one ratio, and the median ratio is
# reported.

Code.require_file("figures.exs", __DIR__)

defmodule Bench.Pair do
  @moduledoc false
  # Times cheap calls in alternating batches.

  @quick System.get_env("SNAKEPIT_BENCH_QUICK") != nil
  @samples if @quick, do: 9, else: 41
  @batch_ns if @quick, do: 500_000, else: 4_000_000

  def samples, do: @samples

  @doc "Times `ours` beside every yardstick; the first one's figure has the id, the others' add their own word."
  def run(id, name, size, ours, yardsticks) do
    times = max(1, round(@batch_ns / batch(ours, 100)))
    calls = [ours | Enum.map(yardsticks, &elem(&1, 2))]
    rounds = for turn <- 1..@samples, do: round_of(calls, times, rem(turn, 2) == 1)

    for {{word, yardstick, _call}, column} <- Enum.with_index(yardsticks, 1) do
      samples = Enum.map(rounds, fn times -> {hd(times), Enum.at(times, column)} end)
      id = if column == 1, do: id, else: "#{id}/#{word}"
      Bench.Figures.add(id, name, size, samples, yardstick)
    end
  end

  defp round_of(calls, times, true), do: Enum.map(calls, &batch(&1, times))

  defp round_of(calls, times, false),
    do: calls |> Enum.reverse() |> Enum.map(&batch(&1, times)) |> Enum.reverse()

  # Nanoseconds of one of `times` calls. What the last batch left on the heap is not this one's to
  # clear away.
  defp batch(call, times) do
    :erlang.garbage_collect()
    call.()
    start = :erlang.monotonic_time(:nanosecond)
    repeat(times, call)
    (:erlang.monotonic_time(:nanosecond) - start) / times
  end

  defp repeat(0, _call), do: :ok

  defp repeat(times, call) do
    call.()
    repeat(times - 1, call)
  end
end

defmodule Bench.Small do
  @moduledoc false
  # Reads and writes of a few bytes, in a segment with the default options.

  alias Snakepit.SharedMemory

  def run(size, dir) do
    value = :rand.bytes(size)
    id = SharedMemory.allocate_region!(max(size, 4096), name: "small-#{size}")
    SharedMemory.write!(id, value)
    held = SharedMemory.map_region!(id)
    ^value = SharedMemory.read!(held)
    ^value = SharedMemory.read!(id)

    path = Path.join(dir, "yardstick-#{size}")
    File.write!(path, value)
    {:ok, file} = :file.open(path, [:raw, :binary, :read, :write])
    {:ok, ^value} = :file.pread(file, 0, size)

    read_yardsticks = [
      {"copy", "binary:copy", fn -> :binary.copy(value) end},
      {"pread", "file:pread", fn -> :file.pread(file, 0, size) end}
    ]

    Bench.Pair.run(
      "read/#{size}/held",
      "read, held mapping",
      size,
      fn -> SharedMemory.read(held) end,
      read_yardsticks
    )

    Bench.Pair.run(
      "read/#{size}/by-id",
      "read, by region id",
      size,
      fn -> SharedMemory.read(id) end,
      read_yardsticks
    )

    Bench.Pair.run(
      "write/#{size}/by-id",
      "write, by region id",
      size,
      fn -> SharedMemory.write(id, value) end,
      [
        {"pwrite", "file:pwrite", fn -> :file.pwrite(file, 0, value) end}
      ]
    )

    ^value = SharedMemory.read!(id)
    :ok = :file.close(file)
    SharedMemory.unmap_region!(held)
    SharedMemory.deallocate_region!(id)
  end
end

defmodule Bench.Big do
  @moduledoc false
  # A hundred megabytes shared and fetched, in the steady state: regions are given back, so that
  # whatever is kept for the next one is there.

  alias Snakepit.SharedMemory

  @size 100_000_000

  def run(warm_copy) do
    value = :binary.copy(:rand.bytes(1_000_000), div(@size, 1_000_000))
    # The first one makes the pages.
    {_, _} = once(value)

    rounds =
      for _ <- 1..max(5, div(Bench.Pair.samples(), 3)),
          do: Tuple.append(once(value), warm_copy.(@size))

    yardstick = "memcpy, warm"
    shares = Enum.map(rounds, fn {share, _fetch, copy} -> {share, copy} end)
    fetches = Enum.map(rounds, fn {_share, fetch, copy} -> {fetch, copy} end)
    Bench.Figures.add("share/#{@size}", "share", @size, shares, yardstick)
    Bench.Figures.add("fetch/#{@size}", "fetch", @size, fetches, yardstick)
  end

  defp once(value) do
    {share_ns, handle} = timed(fn -> SharedMemory.share!(value) end)
    {fetch_ns, fetched} = timed(fn -> SharedMemory.fetch!(handle) end)
    same_ends(fetched, value)
    SharedMemory.deallocate_region!(handle)
    {share_ns, fetch_ns}
  end

  # Cheap, and enough to see that it is the value and all of it.
  defp same_ends(fetched, value) do
    true = byte_size(fetched) == byte_size(value)

    for at <- [0, div(@size, 2), @size - 4096] do
      true = binary_part(fetched, at, 4096) == binary_part(value, at, 4096)
    end
  end

  defp timed(call) do
    :erlang.garbage_collect()
    start = :erlang.monotonic_time(:nanosecond)
    result = call.()
    {:erlang.monotonic_time(:nanosecond) - start, result}
  end
end

defmodule Bench.WarmCopy do
  @moduledoc false
  # One warm memcpy, timed by the bench binary: the BEAM has none to offer, its own copies
  # allocate.

  def open(size) do
    program =
      System.get_env("SNAKEPIT_BENCH_BIN") ||
        raise "SNAKEPIT_BENCH_BIN is not set: use bench/run.sh"

    port =
      Port.open({:spawn_executable, program}, [:binary, {:line, 64}, args: ["memcpy", "#{size}"]])

    measure = fn ^size ->
      Port.command(port, "\n")

      receive do
        {^port, {:data, {:eol, nanoseconds}}} -> String.to_integer(nanoseconds)
      after
        60_000 -> raise "the yardstick does not answer"
      end
    end

    {measure, fn -> Port.close(port) end}
  end
end

Logger.configure(level: :warning)

parent = System.get_env("SNAKEPIT_BENCH_DIR", "/dev/shm")
dir = Path.join(parent, "snakepit-bench-beam-#{System.pid()}")
File.mkdir!(dir)

try do
  Application.put_env(:snakepit, :shared_memory, namespace: "bench", dir: dir)
  {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
  {:ok, _} = Bench.Figures.start()
  for size <- [64, 4096], do: Bench.Small.run(size, dir)
  {warm_copy, close} = Bench.WarmCopy.open(100_000_000)
  Bench.Big.run(warm_copy)
  close.()
  Bench.Figures.save("beam")
  :ok = Application.stop(:snakepit_shared_memory)
after
  File.rm_rf!(dir)
end
