defmodule Demo.RoundTrip do
  @moduledoc """
  The same work done in three ways, measured: see `Demo.Ways`.

  Each result is compared, byte for byte, with what Elixir computed itself. The ways take turns, so that a slow moment
  of the machine hits all of them.
  """

  alias Demo.{Table, Ways, Worker}

  @warm_ups 3

  @doc "Prints a table of medians for these sizes, each measured so many times."
  @spec run(Worker.t(), port(), [pos_integer()], pos_integer()) :: :ok
  def run(worker, port, sizes, repetitions) do
    results = Enum.flat_map(sizes, &measure(worker, port, &1, repetitions))

    Table.print(
      ["way", "size", "median", "times faster", "crossed the pipe", "copied", "reading it all"],
      Enum.map(results, &row/1)
    )

    IO.puts("""

      Medians of #{repetitions} after #{@warm_ups} warm-ups, from the data in Elixir to the result in Elixir. Crossed: both ways together.
      Copied: payload that was copied from memory to memory; what Python computes is not counted.
      Reading it all: not in the median. What was not copied to Elixir costs its page faults when it is first read.\
    """)
  end

  defp measure(worker, port, size, repetitions) do
    {data, expected} = payload(size)
    ways = [Ways.pipe(port), Ways.handles(worker), Ways.standing(worker, size)]

    for(_ <- 1..@warm_ups, way <- ways, do: round(way, data, expected))
    rounds = for _ <- 1..repetitions, way <- ways, do: round(way, data, expected)
    Enum.each(ways, & &1.close.())

    [yardstick | _] = medians = for way <- ways, do: median(way, rounds)

    for median <- medians,
        do: Map.merge(median, %{size: size, faster: yardstick.took / median.took})
  end

  defp round(way, data, expected) do
    started = now()
    {result, crossed, used} = way.go.(data)
    took = now() - started

    started = now()

    if result != expected,
      do: raise("#{way.name} brought back something else than the bytes plus one")

    read = now() - started

    way.tidy.(used)
    # So that a binary of the last round is freed now, and not within the next.
    :erlang.garbage_collect()

    %{
      way: way.name,
      took: took,
      crossed: crossed,
      copied: way.copies * byte_size(data),
      read: read
    }
  end

  defp median(way, rounds) do
    own = Enum.filter(rounds, &(&1.way == way.name))

    for key <- [:took, :crossed, :copied, :read], into: %{way: way.name} do
      {key, own |> Enum.map(& &1[key]) |> Table.percentile(0.5)}
    end
  end

  # Random bytes, and the same plus one, computed here.
  defp payload(size) do
    block = :rand.bytes(min(size, 1_000_000))
    plus_one = for <<byte <- block>>, into: <<>>, do: <<byte + 1>>
    times = div(size, byte_size(block))
    {:binary.copy(block, times), :binary.copy(plus_one, times)}
  end

  defp row(result) do
    [
      result.way,
      Table.bytes(result.size),
      Table.time(result.took),
      :erlang.float_to_binary(result.faster, decimals: 1),
      Table.bytes(result.crossed),
      Table.bytes(result.copied),
      Table.time(result.read)
    ]
  end

  defp now, do: System.monotonic_time(:nanosecond)
end
