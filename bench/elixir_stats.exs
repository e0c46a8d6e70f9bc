# What the statistics cost: reads and writes with and without them, in alternating batches of one
# run, and beside them what counting by `:counters` and timing each call would cost.
#
#     ROUNDS=201 SIZES=64,4096,65536 mix run bench/elixir_stats.exs
#
# Prints one line a case: nanoseconds without and with statistics, and the median of the ratios of
# neighbouring batches with its quartiles. A ratio of 1.02 is a loss of 2 %.

defmodule Bench.Stats do
  @moduledoc false

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.{Native, Recorder}

  @rounds String.to_integer(System.get_env("ROUNDS") || "201")
  @batch_ns 2_000_000
  @sizes (System.get_env("SIZES") || "64,4096,65536")
         |> String.split(",")
         |> Enum.map(&String.to_integer/1)

  def run do
    dir = Path.join("/dev/shm", "snakepit-bench-#{System.pid()}")
    File.mkdir!(dir)
    Logger.configure(level: :warning)
    _ = Application.stop(:snakepit_shared_memory)
    Application.put_env(:snakepit, :shared_memory, dir: dir, namespace: "bench-stats")
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)

    try do
      IO.puts("rounds: #{@rounds}, each a batch of #{div(@batch_ns, 1_000_000)} ms a side")
      for size <- @sizes, do: cases(size)
      yardsticks()
    after
      Application.stop(:snakepit_shared_memory)
      File.rm_rf!(dir)
    end
  end

  defp cases(size) do
    id = SharedMemory.allocate_region!(max(size, 4096))
    held = SharedMemory.map_region!(id)
    value = :rand.bytes(size)
    SharedMemory.write!(id, value)
    compare("read #{size} B, held", fn -> SharedMemory.read(held) end)
    compare("read #{size} B, by id", fn -> SharedMemory.read(id) end)
    compare("write #{size} B, held", fn -> SharedMemory.write(held, value) end)
    compare("write #{size} B, by id", fn -> SharedMemory.write(id, value) end)
    SharedMemory.deallocate_region!(id)
  end

  # The same call, with the switch thrown between the batches; which comes first changes by turns.
  # It is the NIF library's own switch: a call that succeeds meets no other.
  defp compare(name, call) do
    print(
      name,
      pairs(call, call, fn -> Native.monitor(false) end, fn -> Native.monitor(true) end)
    )
  end

  # What would have been done to every call instead, with a read of 4 KiB.
  defp yardsticks do
    id = SharedMemory.allocate_region!(4096)
    held = SharedMemory.map_region!(id)
    SharedMemory.write!(id, :rand.bytes(4096))
    read = fn -> SharedMemory.read(held) end
    Recorder.setup(false)
    nothing = fn -> :ok end
    counters = :counters.new(64, [:write_concurrency])

    counted = fn ->
      {:ok, value} = SharedMemory.read(held)
      :counters.add(counters, 1, 1)
      :counters.add(counters, 2, byte_size(value))
    end

    timed = fn ->
      started = System.monotonic_time()
      SharedMemory.read(held)
      System.monotonic_time() - started
    end

    print("read 4096 B, two :counters a call", pairs(read, counted, nothing, nothing))
    print("read 4096 B, two looks at the clock", pairs(read, timed, nothing, nothing))
    SharedMemory.deallocate_region!(id)
  end

  defp pairs(without, with, off, on) do
    off.()
    times = max(div(@batch_ns, max(round(batch(without, 1000)), 1)), 1)

    for round <- 1..@rounds do
      if rem(round, 2) == 0 do
        before = side(off, without, times)
        {before, side(on, with, times)}
      else
        later = side(on, with, times)
        {side(off, without, times), later}
      end
    end
  end

  defp side(switch, call, times) do
    switch.()
    batch(call, times)
  end

  defp batch(call, times) do
    :erlang.garbage_collect()
    call.()
    started = :erlang.monotonic_time(:nanosecond)
    repeat(times, call)
    (:erlang.monotonic_time(:nanosecond) - started) / times
  end

  defp repeat(0, _call), do: :ok

  defp repeat(times, call) do
    call.()
    repeat(times - 1, call)
  end

  defp print(name, pairs) do
    {without, with} = Enum.unzip(pairs)
    ratios = pairs |> Enum.map(fn {without, with} -> with / without end) |> Enum.sort()
    at = fn share -> Enum.at(ratios, round((length(ratios) - 1) * share)) end
    figures = Enum.map([median(without), median(with)], &:erlang.float_to_binary(&1, decimals: 1))
    ratios = Enum.map([0.5, 0.25, 0.75], &:erlang.float_to_binary(at.(&1), decimals: 4))
    [without, with] = figures
    [ratio, low, high] = ratios

    name = String.pad_trailing(name, 38)
    IO.puts("#{name} without #{without} ns, with #{with} ns, ratio #{ratio} (#{low} to #{high})")
  end

  defp median(values), do: values |> Enum.sort() |> Enum.at(div(length(values), 2))
end

Bench.Stats.run()
