defmodule Bench.Peers.Figures do
  @moduledoc false
  # Figures of the Elixir sections: the same files that the Rust sections write.

  @doc """
  A section from begin to end. `measure` gets a directory of its own, in which the application runs, with these
  settings besides; what it adds is saved, also when it fails.
  """
  def section(section, settings \\ [], measure) do
    Logger.configure(level: :warning)
    base = System.get_env("SNAKEPIT_BENCH_DIR", "/dev/shm")
    dir = Path.join(base, "#{section}-#{System.pid()}")
    File.mkdir!(dir)

    try do
      Application.put_env(:snakepit, :shared_memory, [namespace: "bench", dir: dir] ++ settings)
      {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
      {:ok, _} = Agent.start_link(fn -> {section, [], []} end, name: __MODULE__)

      try do
        measure.(dir)
      after
        save()
      end

      :ok = Application.stop(:snakepit_shared_memory)
    after
      File.rm_rf!(dir)
    end
  end

  @doc "One figure from pairs of ours and theirs, in nanoseconds."
  def add(what, name, size, peer, pairs) do
    section = Agent.get(__MODULE__, &elem(&1, 0))
    {ours, theirs} = Enum.unzip(pairs)
    ratio = pairs |> Enum.map(fn {ours, theirs} -> ours / theirs end) |> median()
    id = "peers/#{section}/#{what}/#{size}/#{peer}"
    IO.puts("#{id}: ours #{round(median(ours))}, theirs #{round(median(theirs))}, ratio #{ratio}")

    json =
      ~s({"id": "#{id}", "name": "#{name}", "size": #{size}, "ours": #{median(ours)}, "unit": "ns", ) <>
        ~s("yardstick": {"name": "#{peer}", "value": #{median(theirs)}}, "ratio": #{ratio}, ) <>
        ~s("hop_ns": null, "note": ""})

    Agent.update(__MODULE__, fn {section, figures, skipped} ->
      {section, [json | figures], skipped}
    end)
  end

  def skip(what, reason) do
    IO.puts("#{what}: not measured: #{reason}")
    json = ~s({"what": "#{what}", "reason": "#{reason}"})

    Agent.update(__MODULE__, fn {section, figures, skipped} ->
      {section, figures, [json | skipped]}
    end)
  end

  defp save do
    {section, figures, skipped} = Agent.get(__MODULE__, & &1)

    if parts = System.get_env("SNAKEPIT_BENCH_PARTS") do
      for {name, rows} <- [{"#{section}.json", figures}, {"#{section}.skipped.json", skipped}] do
        File.write!(
          Path.join(parts, name),
          ["[", Enum.intersperse(Enum.reverse(rows), ",\n"), "]\n"]
        )
      end
    end
  end

  def median(values) do
    sorted = Enum.sort(values)
    (Enum.at(sorted, div(length(sorted) - 1, 2)) + Enum.at(sorted, div(length(sorted), 2))) / 2
  end
end
