defmodule Snakepit.SharedMemory.Reconfiguration do
  @moduledoc false
  # Changes the configuration while the application runs, one call after the other.
  #
  # The running configuration is one term that everybody reads (`Config`), so a change is whole or
  # not at all. Processes that hold on to it are told afterwards. One of them that is being started
  # again at that moment reads it when it starts, so nobody misses a change.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Config, Error, Expiry, Health, Janitor, Pool, Recorder, Registry}
  alias Snakepit.SharedMemory.Telemetry

  @type outcome :: %{applied: [atom()], needs_restart: [atom()], unchanged: [atom()]}

  # How long a caller waits, and how long a process has to take the change. One that is busy takes
  # it when it gets to it.
  @patience_ms 60_000
  @to_be_taken_ms 10_000

  # Who holds on to the configuration, and takes another by the call `{:reconfigure, config}`.
  # Everybody else reads it (`Config.fetch/1`) when it is needed.
  @told [Registry, Expiry, Janitor]

  @spec start_link(Config.t()) :: GenServer.on_start()
  def start_link(_config), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @spec run(term()) :: {:ok, outcome()} | {:error, Error.t()}
  def run(changes) do
    with {:ok, _config} <- Config.fetch(:reconfigure) do
      try do
        GenServer.call(__MODULE__, {:change, changes}, @patience_ms)
      catch
        :exit, {:timeout, _call} -> {:error, late()}
        :exit, {reason, _call} -> {:error, gone(reason)}
      end
    end
  end

  defp late do
    Error.new(:timeout, "the configuration was not changed within #{@patience_ms} ms",
      operation: :reconfigure,
      remedy:
        "call again with the same changes; what has been changed meanwhile is unchanged then"
    )
  end

  defp gone(reason) do
    with {:ok, _config} <- Config.fetch(:reconfigure) do
      Error.new(
        :closed,
        "the process that changes the configuration ended before it answered: " <>
          inspect(reason, limit: 5),
        operation: :reconfigure,
        remedy:
          "call again with the same changes; what has been changed already is unchanged then"
      )
    else
      {:error, not_running} -> not_running
    end
  end

  # -- server ---------------------------------------------------------------------------------

  @impl true
  def init(nil), do: {:ok, nil, {:continue, :resume}}

  # One that was killed may have told some and not others.
  @impl true
  def handle_continue(:resume, state) do
    with {:ok, config} <- Config.fetch(:reconfigure) do
      Telemetry.setup(config.telemetry_enabled)
      tell(config)
    end

    {:noreply, state}
  end

  @impl true
  def handle_call({:change, changes}, _from, state) do
    with {:ok, running} <- Config.fetch(:reconfigure),
         {:ok, next, named} <- Config.change(running, changes) do
      outcome = outcome(running, next, named)
      config = struct!(running, Map.take(next, outcome.applied))
      remember(next, named)

      if outcome.applied != [] do
        Config.install(config)
        tell(config)
      end

      # The event of the change is one of those that it may switch on or off: told either way.
      Telemetry.setup(running.telemetry_enabled or config.telemetry_enabled)
      announce(running, next, outcome)
      Telemetry.setup(config.telemetry_enabled)
      {:reply, {:ok, outcome}, state}
    else
      {:error, error} -> {:reply, {:error, error}, state}
    end
  end

  def handle_call(message, {pid, _tag}, state) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory configuration: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, state}
  end

  @impl true
  def handle_cast(message, state), do: handle_info(message, state)

  @impl true
  def handle_info(message, state) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory configuration: unexpected message: #{shown}")
    {:noreply, state}
  end

  defp outcome(running, next, named) do
    {unchanged, changed} = Enum.split_with(named, &(Map.get(running, &1) == Map.get(next, &1)))
    {needs_restart, applied} = Enum.split_with(changed, &(&1 in Config.needs_restart()))

    %{
      applied: Enum.sort(applied),
      needs_restart: Enum.sort(needs_restart),
      unchanged: Enum.sort(unchanged)
    }
  end

  # For the next start of the application. A directory may have been said there in two ways.
  defp remember(next, named) do
    named = if :dir in named, do: [:platform_options | named], else: named
    settings = Map.new(Application.get_env(:snakepit, :shared_memory, []))
    changed = Map.merge(settings, Map.take(next, named))
    Application.put_env(:snakepit, :shared_memory, Map.to_list(changed))
  end

  # -- telling --------------------------------------------------------------------------------

  defp tell(config) do
    Recorder.setup(config.performance_monitoring)
    Pool.setup(config)
    Health.Monitor.set_interval(config.health_check_interval)
    Enum.each(@told, &tell(&1, config))
  end

  defp tell(process, config) do
    GenServer.call(process, {:reconfigure, config}, @to_be_taken_ms)
  catch
    # Not there: it will read the configuration when it starts. Busy: the message is in its mailbox.
    :exit, _reason -> :ok
  end

  defp announce(_running, _next, %{applied: [], needs_restart: []}), do: :ok

  defp announce(running, next, outcome) do
    changes =
      for key <- outcome.applied ++ outcome.needs_restart, into: %{} do
        {key, {Map.get(running, key), Map.get(next, key)}}
      end

    Telemetry.config_changed(running.namespace, outcome, changes)

    Logger.info(
      "shared memory: configuration changed: #{said(outcome.applied, changes)}" <>
        after_restart(outcome.needs_restart, changes)
    )
  end

  defp after_restart([], _changes), do: ""
  defp after_restart(keys, changes), do: "; after a restart: #{said(keys, changes)}"

  defp said([], _changes), do: "nothing at once"

  defp said(keys, changes) do
    Enum.map_join(keys, ", ", fn key ->
      {was, is} = changes[key]
      "#{key} #{inspect(is)} (was #{inspect(was)})"
    end)
  end
end
