# Ten thousand regions in one VM, and many processes that read many regions.
#
# Run by bench/run.sh, as `mix run --no-start bench/beam/regions_bench.exs`. The yardstick of an
# operation's 99th percentile with ten thousand regions is the same with a hundred.

Code.require_file("figures.exs", __DIR__)

defmodule Bench.Regions do
  @moduledoc false

  alias Snakepit.SharedMemory

  @quick System.get_env("SNAKEPIT_BENCH_QUICK") != nil
  @many if @quick, do: 1_000, else: 10_000
  @few 100

  def run do
    # What is loaded and grown by the first calls is not counted.
    rounds(1, @few)
    few = rounds(div(@many, @few), @few)
    before = descriptors()
    many = rounds(1, @many)

    for {operation, ns} <- many.p99 do
      name = "#{operation}, P99 with #{@many} regions"
      yardstick = {"with #{@few}", few.p99[operation]}
      Bench.Figures.put("regions/#{@many}/#{operation}", name, @many, {ns, "ns"}, yardstick)
    end

    added = max(many.descriptors - before, 1)
    name = "descriptors added by #{@many} regions"
    id = "regions/#{@many}/descriptors"
    Bench.Figures.put(id, name, @many, {added, "count"}, {"regions", @many})
  end

  # As many calls of each kind, whether of many regions once or of a few again and again.
  defp rounds(times, count) do
    all = for _ <- 1..times, do: measure(count)

    calls =
      all |> Enum.map(& &1.calls) |> Enum.reduce(&Map.merge(&1, &2, fn _, a, b -> a ++ b end))

    p99 = Map.new(calls, fn {operation, times} -> {operation, p99(times)} end)
    %{p99: p99, descriptors: hd(all).descriptors}
  end

  defp measure(count) do
    {allocate, ids} = timed(Enum.to_list(1..count), fn _ -> allocate() end)
    {write, _} = timed(ids, &SharedMemory.write!(&1, "value"))
    {read, _} = timed(ids, &SharedMemory.read!/1)
    {lookup, _} = timed(ids, &SharedMemory.read!/1)
    {info, _} = timed(ids, &SharedMemory.get_region_info!/1)
    {map, mapped} = timed(ids, &SharedMemory.map_region!/1)
    open = descriptors()
    Enum.each(mapped, &SharedMemory.unmap_region!/1)
    Enum.each(ids, &SharedMemory.deallocate_region!/1)
    calls = %{allocate: allocate, write: write, read: read, lookup: lookup, info: info, map: map}
    %{calls: calls, descriptors: open}
  end

  defp allocate, do: SharedMemory.allocate_region!(4096, slots: 2)

  # How long the call took for each item, and what it answered.
  defp timed(items, call) do
    :erlang.garbage_collect()

    items
    |> Enum.map(fn item ->
      started = :erlang.monotonic_time(:nanosecond)
      result = call.(item)
      {:erlang.monotonic_time(:nanosecond) - started, result}
    end)
    |> Enum.unzip()
  end

  defp p99(times), do: times |> Enum.sort() |> Enum.at(div(length(times) * 99, 100))

  defp descriptors, do: length(File.ls!("/proc/self/fd"))
end

defmodule Bench.Crowd do
  @moduledoc false
  # A hundred processes that read a thousand regions, on one scheduler and on all.

  alias Snakepit.SharedMemory

  @readers 100
  @regions 1_000
  @milliseconds 1_000

  def run do
    ids = for _ <- 1..@regions, do: SharedMemory.allocate_region!(4096, slots: 2)
    Enum.each(ids, &SharedMemory.write!(&1, :binary.copy("x", 4096)))
    table = List.to_tuple(ids)
    cores = :erlang.system_info(:schedulers)

    rounds =
      for _ <- 1..5 do
        {on_schedulers(1, table), on_schedulers(cores, table)}
      end

    one = rounds |> Enum.map(&elem(&1, 0)) |> Bench.Figures.median()
    all = rounds |> Enum.map(&elem(&1, 1)) |> Bench.Figures.median()
    name = "#{@readers} processes read #{@regions} regions of 4096 B on #{cores} schedulers"
    yardstick = {"on one, times #{cores}", one * cores}
    Bench.Figures.put("crowd/4096", name, 4096, {all, "per_second"}, yardstick)
    Enum.each(ids, &SharedMemory.deallocate_region!/1)
  end

  defp on_schedulers(count, table) do
    before = :erlang.system_flag(:schedulers_online, count)
    counter = :counters.new(1, [:write_concurrency])
    until = :erlang.monotonic_time(:millisecond) + @milliseconds

    1..@readers
    |> Enum.map(fn seed -> Task.async(fn -> read_on(table, seed, until, counter) end) end)
    |> Task.await_many(60_000)

    :erlang.system_flag(:schedulers_online, before)
    :counters.get(counter, 1) * 1000 / @milliseconds
  end

  # A hundred reads between two looks at the clock.
  defp read_on(table, at, until, counter) do
    at = read_hundred(table, at, 100)
    :counters.add(counter, 1, 100)
    if :erlang.monotonic_time(:millisecond) < until, do: read_on(table, at, until, counter)
  end

  defp read_hundred(_table, at, 0), do: at

  defp read_hundred(table, at, left) do
    {:ok, <<"x", _::binary>>} = SharedMemory.read(elem(table, rem(at, @regions)))
    read_hundred(table, at + 7, left - 1)
  end
end

defmodule Bench.Listing do
  @moduledoc false
  # What there is, by a listing that is kept and by one that looks at everything anew.

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.{Config, Native}

  @regions 1_000
  @rounds 21

  def run do
    ids = for _ <- 1..@regions, do: SharedMemory.allocate_region!(4096, slots: 2)
    {:ok, %{namespace: namespace, dir: dir}} = Config.fetch(:bench)
    anew = fn -> {:ok, {[_ | _], []}} = Native.list(namespace, dir) end
    list = fn -> @regions = length(SharedMemory.list_regions!()) end
    check = fn -> %{status: :ok} = SharedMemory.health_check!() end
    # From the third list on it is kept.
    for _ <- 1..3, do: list.()

    {list, anew_then} = together(list, anew)
    put("list_regions", list, anew_then)
    {check, anew_then} = together(check, anew)
    put("health_check", check, anew_then)
    Enum.each(ids, &SharedMemory.deallocate_region!/1)
  end

  # Each round one of both, so that a busy moment meets both.
  defp together(ours, yardstick) do
    {ours, yardstick} =
      1..@rounds |> Enum.map(fn _ -> {time(ours), time(yardstick)} end) |> Enum.unzip()

    {Bench.Figures.median(ours), Bench.Figures.median(yardstick)}
  end

  defp time(call) do
    started = :erlang.monotonic_time(:nanosecond)
    call.()
    :erlang.monotonic_time(:nanosecond) - started
  end

  defp put(call, ours, anew) do
    name = "#{call} with #{@regions} regions"
    yardstick = {"looked at anew", anew}
    Bench.Figures.put("listing/#{@regions}/#{call}", name, @regions, {ours, "ns"}, yardstick)
  end
end

Logger.configure(level: :warning)

parent = System.get_env("SNAKEPIT_BENCH_DIR", "/dev/shm")
dir = Path.join(parent, "snakepit-bench-regions-#{System.pid()}")
File.mkdir!(dir)

try do
  Application.put_env(:snakepit, :shared_memory,
    namespace: "bench",
    dir: dir,
    max_regions: 100_000
  )

  {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
  {:ok, _} = Bench.Figures.start()
  Bench.Regions.run()
  Bench.Crowd.run()
  Bench.Listing.run()
  Bench.Figures.save("regions")
  :ok = Application.stop(:snakepit_shared_memory)
after
  File.rm_rf!(dir)
end
