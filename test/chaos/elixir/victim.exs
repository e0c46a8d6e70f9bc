# Elixir's reader of a region that is going to be damaged, as `peer/src/victim.rs`.
#
#     elixir -pa EBIN elixir/victim.exs NAMESPACE DIR NAME

defmodule Chaos.Victim do
  @moduledoc false

  alias Snakepit.SharedMemory, as: SHM

  @value :binary.copy(<<7>>, 60_000)

  def run([namespace, dir, name]) do
    # Standard output is for the judge; what goes wrong is a record there.
    Logger.configure(level: :none)
    Application.put_env(:snakepit, :shared_memory, namespace: namespace, dir: dir)
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    victim = self()

    spawn_link(fn ->
      :eof = IO.binread(:stdio, 1)
      send(victim, :stop)
    end)

    region = SHM.map_region!(name, access_mode: :read_only)
    loop(region, MapSet.new())
    {:ok, _} = SHM.unmap_region(region)
    :ok = Application.stop(:snakepit_shared_memory)
  end

  # Tells each kind of answer once, as a line of JSON.
  defp loop(region, told) do
    answer =
      case SHM.read(region) do
        {:ok, @value} -> "ok"
        {:ok, _} -> "damaged value"
        {:error, error} -> to_string(error.code)
      end

    if answer not in told, do: IO.puts(~s({"answer": "#{answer}"}))

    receive do
      :stop -> :ok
    after
      2 -> loop(region, MapSet.put(told, answer))
    end
  end
end

Chaos.Victim.run(System.argv())
