defmodule Snakepit.SharedMemory.Expiry do
  @moduledoc false
  # Removes regions of this node that nobody uses any more: those with a timeout that are idle,
  # those whose last reference has gone, and those of sessions and workers that have ended.
  #
  # It looks, the registry decides: what was seen is checked once more where nothing can come in
  # between. Nothing is kept here that a restart would lose.
  #
  # Reads by id leave no trace, for they must cost nothing. So the reader that they share is taken
  # out of the table at each look; whoever reads afterwards puts one back, and that is seen.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Config, Jobs, Native, Registry, Sessions, Table, Target, Telemetry}
  alias Snakepit.SharedMemory.Table.Record

  # Between two looks at a region whose last references are readers of other OS processes, and at
  # the sessions, where the configuration says nothing.
  @recheck_ms 1_000

  # A timer of the VM takes 49 days at most. Whoever has more time is looked at in between.
  @longest_pause_ms 24 * 60 * 60 * 1000

  def start_link(config), do: GenServer.start_link(__MODULE__, config, name: __MODULE__)

  @doc "Looks after a region from now on: it is marked, or has a timeout."
  @spec watch(Target.key()) :: :ok
  def watch(key), do: GenServer.cast(__MODULE__, {:watch, key})

  # seen:  key => what was seen of an idle region the last time
  # sweep: monitor of the look at the sessions that is under way
  defstruct [:config, seen: %{}, sweep: nil]

  @impl true
  def init(config) do
    {:ok, %__MODULE__{config: config}, {:continue, :recover}}
  end

  @impl true
  def handle_continue(:recover, state) do
    watched = Table.records(&(&1.state == :live and (&1.timeout != nil or &1.marked != nil)))
    Process.send_after(self(), :sessions, interval(state))
    {:noreply, Enum.reduce(watched, state, &begin(&2, &1))}
  end

  @impl true
  def handle_call(message, {pid, _tag}, state) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory expiry: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, state}
  end

  @impl true
  def handle_cast({:watch, key}, state) do
    case Table.record(key) do
      {:ok, record} -> {:noreply, begin(state, record)}
      :error -> {:noreply, state}
    end
  end

  def handle_cast(message, state), do: handle_info(message, state)

  @impl true
  def handle_info({:idle, key, token}, state) do
    case Table.record(key) do
      {:ok, %Record{token: ^token} = record} -> {:noreply, look(state, record)}
      _ -> {:noreply, forget(state, key, token)}
    end
  end

  def handle_info({:grace, key, marked, readers?}, state) do
    with {:ok, %Record{marked: ^marked} = record} <- Table.record(key) do
      grace_over(state, record, readers?)
    end

    {:noreply, state}
  end

  # Others' code is asked, and files are removed: beside this process, one look at a time.
  def handle_info(:sessions, %{sweep: nil} = state) do
    {:ok, pid} = Jobs.run(&Sessions.sweep/0)
    {:noreply, %{state | sweep: Process.monitor(pid)}}
  end

  def handle_info({:DOWN, monitor, :process, _pid, _reason}, %{sweep: monitor} = state) do
    Process.send_after(self(), :sessions, interval(state))
    {:noreply, %{state | sweep: nil}}
  end

  def handle_info(message, state) do
    Logger.warning("shared memory expiry: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, state}
  end

  defp begin(state, record) do
    if record.marked, do: wait_for_grace(state, record, record.marked, false)
    if record.timeout, do: begin_idle(state, record), else: state
  end

  # -- without references ---------------------------------------------------------------------

  defp wait_for_grace(state, record, from, readers?) do
    due = max(from + config(state).reference_grace - now(), 0)
    Process.send_after(self(), {:grace, record.target.key, record.marked, readers?}, due)
  end

  defp grace_over(state, record, readers?) do
    case in_use(record) do
      # The last reader of another process has just gone: now the grace begins.
      {:ok, _version, 0} when readers? ->
        wait_for_grace(state, record, now(), false)

      {:ok, _version, 0} ->
        remove(record, {:mark, record.marked}, :unreferenced)

      {:ok, _version, _readers} ->
        look_again(state, record)

      # Nobody can find or read it any more.
      {:error, code} when code in [:not_found, :corrupted, :truncated] ->
        remove(record, {:mark, record.marked}, :unreferenced)

      {:error, _cannot_tell} ->
        look_again(state, record)
    end
  end

  defp look_again(state, record) do
    pause = min(max(config(state).reference_grace, 10), @recheck_ms)
    Process.send_after(self(), {:grace, record.target.key, record.marked, true}, pause)
  end

  # -- idle -----------------------------------------------------------------------------------

  # A region that is marked and has a timeout is watched already.
  defp begin_idle(state, %{target: %{key: key}, token: token} = record) do
    case state.seen do
      %{^key => %{token: ^token}} -> state
      _ -> look(state, record)
    end
  end

  defp look(state, %{target: %{key: key}} = record) do
    seen = see(record)
    before = state.seen[key]

    case before do
      %{used: used} when used == seen.used and not seen.busy ->
        if now() - before.since >= record.timeout,
          do: idle(state, record, before),
          else: look_later(state, record, before)

      _ ->
        look_later(state, record, Map.put(seen, :since, now()))
    end
  end

  # Used is what changes with a use that is over; busy, that one goes on or was since the last look.
  defp see(%{target: %{key: key}, token: token} = record) do
    {version, readers} =
      case in_use(record) do
        {:ok, version, readers} -> {version, readers}
        {:error, _} -> {nil, 0}
      end

    cached? = Table.reader(key) != nil
    if cached?, do: Registry.drop_reader(key)
    uses = Table.uses(key)
    busy = cached? or readers > 0 or Table.count(key) > 0
    %{token: token, used: {version, uses}, uses: uses, busy: busy}
  end

  defp look_later(state, %{target: %{key: key}} = record, seen) do
    left = seen.since + record.timeout - now()
    pause = left |> min(div(record.timeout, 2)) |> min(@longest_pause_ms) |> max(1)
    Process.send_after(self(), {:idle, key, record.token}, pause)
    %{state | seen: Map.put(state.seen, key, seen)}
  end

  defp idle(state, %{target: %{key: key}} = record, seen) do
    case remove(record, {:idle, record.token, seen.uses}, :idle) do
      :removed -> forget(state, key, record.token)
      _used_meanwhile -> look_later(state, record, %{seen | since: now()})
    end
  end

  defp forget(state, key, token) do
    case state.seen do
      %{^key => %{token: ^token}} -> %{state | seen: Map.delete(state.seen, key)}
      _ -> state
    end
  end

  # -------------------------------------------------------------------------------------------

  defp in_use(%{target: target}) do
    case Native.usage(Target.native(target)) do
      {:ok, {version, readers}} -> {:ok, version, readers}
      {:error, {code, _message, _segment, _remedy}} -> {:error, code}
    end
  end

  defp remove(record, guard, reason) do
    with :removed <- Registry.expire(record.target.key, guard) do
      Telemetry.expired(record.target.id, record.bytes, reason)
      Logger.debug("shared memory: removed #{record.target.id} (#{reason})")
      :removed
    end
  end

  defp interval(state) do
    min(config(state).cleanup_interval || @recheck_ms, @longest_pause_ms)
  end

  defp config(state) do
    case Config.fetch(:expire) do
      {:ok, config} -> config
      {:error, _} -> state.config
    end
  end

  defp now, do: System.monotonic_time(:millisecond)
end
