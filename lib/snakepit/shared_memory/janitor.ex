defmodule Snakepit.SharedMemory.Janitor do
  @moduledoc false
  # Removes what dead processes left in a namespace, while the application runs.
  #
  # The work is done by a thread of the core (the reaper), which sends its events here; here they
  # become telemetry and log lines. Ending this process ends the thread.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Config, Error, Native, Pool, Telemetry}

  # Pause before another attempt when the reaper could not be started: it lacked descriptors or
  # threads, or the directory was not there.
  @retry_ms 5_000

  # What the pool is tidied after, where that is configured.
  @tidy_ms 60_000

  @doc "Watches the namespace of `config`; `:name` registers the process."
  @spec start_link({Config.t(), keyword()}) :: GenServer.on_start()
  def start_link({config, options}), do: GenServer.start_link(__MODULE__, config, options)

  @doc "Counters of the reaper: `:watched` processes, `:deaths`, `:sweeps`, `:removed` segments."
  @spec stats(GenServer.server()) :: {:ok, map()} | :not_running
  def stats(server \\ __MODULE__), do: GenServer.call(server, :stats)

  @doc "Sweeps as soon as possible, without waiting for it."
  @spec sweep_now(GenServer.server()) :: :ok
  def sweep_now(server \\ __MODULE__), do: GenServer.cast(server, :sweep_now)

  # -- server ---------------------------------------------------------------------------------

  defstruct [:config, :reaper]

  @impl true
  def init(config) do
    # So that `terminate/2` is called.
    Process.flag(:trap_exit, true)
    config = Config.current(config)

    # What is removed in passing, by a call that may come before the reaper runs, has that grace too. A
    # namespace that is none is refused by name when the reaper starts.
    _ = Native.set_grace(config.namespace, config.dir, config.grace)
    Process.send_after(self(), :tidy, @tidy_ms)
    {:ok, %__MODULE__{config: config}, {:continue, :start}}
  end

  @impl true
  def handle_continue(:start, %{config: config} = state) do
    case Native.start_reaper(watch(config), self()) do
      {:ok, reaper} ->
        # The one before, when the configuration has changed: only now, so that none is missed.
        if state.reaper, do: Native.stop_reaper(state.reaper)
        {:noreply, %{state | reaper: reaper}}

      {:error, {_code, message, _segment, _remedy}} ->
        report({:failed, message}, config)
        Process.send_after(self(), :retry, @retry_ms)
        {:noreply, state}
    end
  end

  defp watch(config) do
    %{
      namespace: config.namespace,
      dir: config.dir,
      mode: config.mode,
      grace: config.grace,
      interval: config.cleanup_interval
    }
  end

  @impl true
  def handle_call({:reconfigure, %Config{} = config}, _from, state) do
    changed? = watch(config) != watch(state.config)
    state = %{state | config: config}
    if changed?, do: {:reply, :ok, state, {:continue, :start}}, else: {:reply, :ok, state}
  end

  def handle_call(:stats, _from, %{reaper: nil} = state), do: {:reply, :not_running, state}

  def handle_call(:stats, _from, state) do
    {:reply, Native.reaper_stats(state.reaper), state}
  end

  def handle_call(message, {pid, _tag}, state) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory janitor: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, state}
  end

  @impl true
  # One that has not started yet sweeps when it does.
  def handle_cast(:sweep_now, %{reaper: nil} = state), do: {:noreply, state}

  def handle_cast(:sweep_now, state) do
    {:ok, :ok} = Native.sweep_now(state.reaper)
    {:noreply, state}
  end

  def handle_cast(message, state), do: handle_info(message, state)

  @impl true
  def handle_info({:snakepit_shm, :reaper, event}, state) do
    report(event, state.config)
    {:noreply, state}
  end

  def handle_info(:tidy, state) do
    Process.send_after(self(), :tidy, @tidy_ms)

    with {:error, error} <- Pool.tidy(state.config) do
      report({:failed, Exception.message(error)}, state.config)
    end

    {:noreply, state}
  end

  def handle_info(:retry, state), do: {:noreply, state, {:continue, :start}}

  def handle_info(message, state) do
    Logger.warning("shared memory janitor: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, state}
  end

  @impl true
  def terminate(_reason, %{reaper: nil}), do: :ok
  def terminate(_reason, %{reaper: reaper}), do: Native.stop_reaper(reaper)

  # -- what happened --------------------------------------------------------------------------

  defp report({:process_ended, os_pid, name}, config)
       when is_integer(os_pid) and is_binary(name) do
    Telemetry.process_ended(config.namespace, os_pid, name)

    Logger.debug("shared memory: process #{os_pid} (#{name}) has ended",
      namespace: config.namespace
    )
  end

  defp report({:failed, reason}, config) when is_binary(reason) do
    Telemetry.cleanup_failed(config.namespace, reason)

    # Perhaps with each sweep from now on.
    Error.Log.note(
      Error.new(:io, "cleanup of #{config.namespace} failed: #{reason}",
        operation: :cleanup,
        remedy: "check the directory #{config.dir} and its file system; it is tried again"
      )
    )
  end

  defp report({:swept, %{recovered: recovered, cleared_readers: cleared} = swept}, config)
       when is_list(swept.removed) and is_list(swept.corrupted) and is_list(recovered) and
              is_integer(cleared) do
    Telemetry.swept(config.namespace, :janitor, swept)

    if swept.removed != [] do
      Logger.info("shared memory: removed from #{config.namespace}: #{said(swept.removed)}")
    end

    if swept.corrupted != [] do
      Logger.warning(
        "shared memory: corrupted in #{config.namespace}: #{said(swept.corrupted)}; " <>
          "remedy: Snakepit.SharedMemory.cleanup_regions(corrupted: true)"
      )
    end
  end

  # Not the core's.
  defp report(other, _config) do
    Logger.warning("shared memory janitor: unexpected message: #{inspect(other, limit: 5)}")
  end

  # A namespace may hold thousands.
  @shown 10

  defp said(items) do
    shown = items |> Enum.take(@shown) |> Enum.map_join(", ", &"#{&1.id} (#{&1.reason})")
    more = length(items) - @shown
    if more > 0, do: "#{shown} and #{more} more", else: shown
  end
end
