defmodule Workers.Measure do
  @moduledoc """
  The ways beside one another, in turns, so that a slow moment of the machine hits all of them.

  Measured is from the data in Elixir to a result of which every byte has been compared, so that what a way leaves
  for the first touch is in it.
  """

  alias Workers.Work

  @type row :: %{tool: String.t(), bytes: pos_integer(), way: Work.way(), median_ms: float()}

  @doc "Medians of `rounds` rounds after a warm-up."
  @spec run([{String.t(), [pos_integer()]}], pos_integer()) :: [row()]
  def run(plan, rounds) do
    for {tool, sizes} <- plan,
        size <- sizes,
        row <- measure(Work.new(tool, size), rounds),
        do: row
  end

  defp measure(work, rounds) do
    # A result of its own memory, which no way's result lies in.
    {:ok, expected} = Work.run(work, :pipe)

    taken =
      for round <- 0..rounds, way <- Work.ways(), round > 0 or once(work, way, expected) do
        {way, once(work, way, expected)}
      end

    for way <- Work.ways() do
      times = for {^way, time} <- taken, do: time
      median = times |> Enum.sort() |> Enum.at(div(length(times), 2))
      %{tool: work.tool, bytes: byte_size(work.data), way: way, median_ms: median}
    end
  end

  defp once(work, way, expected) do
    # What the last round has left is collected now, and not within this one.
    :erlang.garbage_collect()
    started = System.monotonic_time(:nanosecond)
    {:ok, result} = Work.run(work, way, timeout: 300_000)
    same? = result == expected
    took = (System.monotonic_time(:nanosecond) - started) / 1.0e6
    unless same?, do: raise("#{work.tool} by #{Work.name(way)} came to another result")
    took
  end

  @doc "A table: rows of tool and size, columns of ways."
  @spec print([row()]) :: :ok
  def print(rows) do
    header =
      ["work", "data"] ++ Enum.map(Work.ways(), &Work.name/1) ++ ["pipe/handles", "JSON/handles"]

    lines =
      for {{tool, bytes}, rows} <- grouped(rows) do
        times = Map.new(rows, &{&1.way, &1.median_ms})
        shown = for way <- Work.ways(), do: Demo.Table.time(times[way] * 1.0e6)
        ratios = for way <- [:pipe, :json], do: ratio(times[way] / times.handle)
        [tool, Demo.Table.bytes(bytes)] ++ shown ++ ratios
      end

    Demo.Table.print(header, lines)
  end

  # In the order in which they were measured.
  defp grouped(rows) do
    rows
    |> Enum.chunk_by(&{&1.tool, &1.bytes})
    |> Enum.map(fn [row | _] = rows -> {{row.tool, row.bytes}, rows} end)
  end

  defp ratio(ratio), do: :erlang.float_to_binary(ratio, decimals: 1)

  @doc "Has Python draw the rows, into `file` without its ending: an SVG and a PNG."
  @spec plot([row()], Path.t(), String.t()) :: :ok
  def plot(rows, file, python) do
    json = file <> ".json"
    File.mkdir_p!(Path.dirname(file))
    File.write!(json, Demo.JSON.encode(rows))
    script = Path.join([File.cwd!(), "python", "plot.py"])

    case System.cmd(python, [script, json, file], stderr_to_stdout: true) do
      {_, 0} -> :ok
      {said, status} -> raise "plot.py ended with status #{status}: #{said}"
    end
  end
end
