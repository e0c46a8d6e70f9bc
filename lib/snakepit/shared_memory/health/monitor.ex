defmodule Snakepit.SharedMemory.Health.Monitor do
  @moduledoc false
  # Runs the checks by itself, every `health_check_interval` milliseconds; nil is never. The event
  # of each run is `Health`'s; here a change of the status goes into the log, and only that.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Config, Health}

  @doc "Checks as `config` says; `:name` registers the process."
  @spec start_link({Config.t(), keyword()}) :: GenServer.on_start()
  def start_link({config, options}), do: GenServer.start_link(__MODULE__, config, options)

  @doc "Checks at another interval from now on; nil is never."
  @spec set_interval(GenServer.server(), pos_integer() | nil) :: :ok
  def set_interval(server \\ __MODULE__, interval)
      when is_nil(interval) or (is_integer(interval) and interval > 0) do
    GenServer.cast(server, {:interval, interval})
  end

  # -- server ---------------------------------------------------------------------------------

  defstruct [:place, :interval, :timer, status: :ok]

  @impl true
  def init(config) do
    config = Config.current(config)

    state = %__MODULE__{
      place: [namespace: config.namespace, dir: config.dir],
      interval: Map.get(config, :health_check_interval)
    }

    {:ok, schedule(state)}
  end

  @impl true
  def handle_call(message, {pid, _tag}, state) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory health: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, state}
  end

  @impl true
  def handle_cast({:interval, interval}, state)
      when is_nil(interval) or (is_integer(interval) and interval > 0) do
    {:noreply, schedule(%{state | interval: interval})}
  end

  def handle_cast(message, state), do: handle_info(message, state)

  @impl true
  def handle_info({:timeout, timer, :check}, %{timer: timer} = state) do
    {:noreply, schedule(check(state))}
  end

  # A timer that had gone off when it was set anew.
  def handle_info({:timeout, _timer, :check}, state), do: {:noreply, state}

  def handle_info(message, state) do
    Logger.warning("shared memory health: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, state}
  end

  defp schedule(state) do
    if state.timer, do: :erlang.cancel_timer(state.timer)
    timer = state.interval && :erlang.start_timer(state.interval, self(), :check)
    %{state | timer: timer}
  end

  # While the application is starting or stopping there is nothing to be said.
  defp check(state) do
    case Health.check(state.place, :monitor) do
      {:ok, report} ->
        if report.status != state.status, do: log(report, state)
        %{state | status: report.status}

      {:error, _error} ->
        state
    end
  end

  defp log(%{status: :ok}, state) do
    Logger.info("shared memory health of #{state.place[:namespace]}: ok again")
  end

  defp log(report, state) do
    found =
      Enum.map_join(report.findings, "; ", &"#{&1.check}: #{&1.message} (remedy: #{&1.remedy})")

    level = if report.status == :critical, do: :error, else: :warning

    Logger.log(
      level,
      "shared memory health of #{state.place[:namespace]}: #{report.status}: #{found}"
    )
  end
end
