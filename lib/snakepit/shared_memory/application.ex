defmodule Snakepit.SharedMemory.Application do
  @moduledoc false
  # The process that runs `start/2` lives as long as the application and runs `stop/1` in the end,
  # however the supervision tree came down. So it owns the tables, and empties them.

  use Application

  require Logger

  alias Snakepit.SharedMemory.{Bridge, Config, Error, History, Jobs, Listing, Native, Pool}
  alias Snakepit.SharedMemory.{Recorder, Table, Telemetry, Writers}

  @impl true
  def start(_type, _args) do
    case Config.load() do
      {:ok, config} ->
        Telemetry.setup(config.telemetry_enabled)
        Recorder.create_table()
        Recorder.setup(config.enabled and config.performance_monitoring)
        Table.create()
        Error.Log.create_table()
        History.create()
        Bridge.Threshold.create_table()
        Writers.create_table()
        stop_with_script()
        start_tree(config)

      {:error, error} ->
        {:error, "config :snakepit, :shared_memory: " <> Exception.message(error)}
    end
  end

  defp start_tree(%{enabled: false} = config) do
    Config.install(config)
    Supervisor.start_link([], strategy: :one_for_one)
  end

  defp start_tree(config) do
    with {:ok, supervisor} <- Snakepit.SharedMemory.Supervisor.start_link(config) do
      Listing.open(config)
      Pool.setup(config)
      Config.install(config)
      {:ok, supervisor}
    end
  end

  @impl true
  def prep_stop(state) do
    Config.uninstall()
    state
  end

  # Nothing of this VM stays behind. Jobs that were under way have removed their own segments.
  @impl true
  def stop(_state) do
    Config.uninstall()
    Listing.close()
    each(Writers.all(), &Writers.give_back/1)
    each(Table.all_mappings(), &Jobs.unmap/1)
    each(Table.all_resources(), &Jobs.discard_all/1)
    :ok = Native.drain_pools()
    Recorder.setup(false)
    Telemetry.forget()
    Table.forget()
  end

  # A bad row must not keep the others from being given back.
  defp each(rows, give_back) do
    for row <- rows do
      try do
        give_back.(row)
      catch
        kind, reason ->
          said = Exception.format_banner(kind, reason)
          shown = inspect(row, limit: 5)
          Logger.warning("shared memory: could not give back #{shown} at the end: #{said}")
      end
    end
  end

  # A script ends with `halt`, which stops no application, and its regions would stay. Hooks of
  # the first round, such as ExUnit's, may still need us, so ours waits for the second. It does
  # what stopping does, without the report in the log that an application has exited.
  defp stop_with_script do
    System.at_exit(fn _status -> System.at_exit(fn _status -> end_of_script() end) end)
  end

  defp end_of_script do
    if supervisor = Process.whereis(Snakepit.SharedMemory.Supervisor) do
      prep_stop(nil)
      Snakepit.SharedMemory.Supervisor.terminate_children(supervisor)
      stop(nil)
    end
  end
end
