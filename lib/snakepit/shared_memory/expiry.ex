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
  alias Snakepit.SharedMemory.Writers
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

  @doc "Forgets a region that has gone, and the timers of its next looks, which may be far away."
  @spec forget(Record.t()) :: :ok
  def forget(%{timeout: nil, marked: nil}), do: :ok

  def forget(%{target: %{key: key}, token: token, marked: marked}) do
    GenServer.cast(__MODULE__, {:forget, key, token, marked})
  end

  # seen:   key => what was seen of an idle region the last time, and the timer of the next look
  # graces: key => since when a marked region waits, and the timer of its end
  # sweep:  monitor of the look at the sessions that is under way; timer: that of the next one
  defstruct [:config, :timer, :sweep, seen: %{}, graces: %{}]

  @impl true
  def init(config) do
    {:ok, %__MODULE__{config: Config.current(config)}, {:continue, :recover}}
  end

  @impl true
  def handle_continue(:recover, state) do
    watched = Table.records(&(&1.state == :live and (&1.timeout != nil or &1.marked != nil)))
    {:noreply, Enum.reduce(watched, schedule_sweep(state), &begin(&2, &1))}
  end

  # What waits by the clock waits by another now.
  @impl true
  def handle_call({:reconfigure, %Config{} = config}, _from, state) do
    state = %{state | config: config}
    state = if state.sweep, do: state, else: schedule_sweep(state)
    state = Enum.reduce(state.graces, state, &wait_anew/2)
    timed = Table.records(&(&1.state == :live and &1.timeout != nil))
    {:reply, :ok, Enum.reduce(timed, state, &look_anew/2)}
  end

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

  def handle_cast({:forget, key, token, marked}, state) do
    {:noreply, state |> forget(key, token) |> forget_grace(key, marked)}
  end

  def handle_cast(message, state), do: handle_info(message, state)

  # Only timers of ours are believed: what is removed by them is not to be had back.
  @impl true
  def handle_info({:timeout, timer, {:idle, key}}, state) do
    case state.seen do
      %{^key => %{timer: ^timer, token: token}} -> {:noreply, idle_over(state, key, token)}
      _replaced -> {:noreply, state}
    end
  end

  def handle_info({:timeout, timer, {:grace, key}}, state) do
    case state.graces do
      %{^key => %{timer: ^timer} = grace} -> {:noreply, grace_over(state, key, grace)}
      _replaced -> {:noreply, state}
    end
  end

  # Others' code is asked, and files are removed: beside this process, one look at a time.
  def handle_info({:timeout, timer, :sessions}, %{timer: timer} = state)
      when is_reference(timer) do
    {:ok, pid} = Jobs.run(&Sessions.sweep/0)
    {:noreply, %{state | timer: nil, sweep: Process.monitor(pid)}}
  end

  def handle_info({:DOWN, monitor, :process, _pid, _reason}, %{sweep: monitor} = state) do
    {:noreply, schedule_sweep(%{state | sweep: nil})}
  end

  def handle_info(message, state) do
    Logger.warning("shared memory expiry: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, state}
  end

  defp begin(state, record) do
    state = if record.marked, do: begin_grace(state, record), else: state
    if record.timeout, do: begin_idle(state, record), else: state
  end

  defp schedule_sweep(state) do
    cancel(state.timer)
    %{state | timer: :erlang.start_timer(interval(state), self(), :sessions)}
  end

  defp cancel(nil), do: :ok
  defp cancel(timer), do: :erlang.cancel_timer(timer)

  # -- without references ---------------------------------------------------------------------

  defp begin_grace(state, %{target: %{key: key}, marked: marked}) do
    case state.graces do
      %{^key => %{marked: ^marked}} -> state
      _ -> wait(state, key, %{marked: marked, from: marked})
    end
  end

  # From when on its grace runs; nil while readers of other OS processes are there.
  defp wait(state, key, %{from: from} = grace) do
    pause = if from, do: max(from + config(state).reference_grace - now(), 0), else: pause(state)
    wait(state, key, grace, pause)
  end

  defp wait(state, key, grace, pause) do
    cancel(get_in(state.graces, [key, :timer]))
    timer = :erlang.start_timer(pause, self(), {:grace, key})
    %{state | graces: Map.put(state.graces, key, Map.put(grace, :timer, timer))}
  end

  defp wait_anew({key, grace}, state), do: wait(state, key, grace)

  # Between two looks at what cannot be removed yet.
  defp pause(state), do: min(max(config(state).reference_grace, 10), @recheck_ms)

  defp grace_over(state, key, %{marked: marked} = grace) do
    case Table.record(key) do
      {:ok, %Record{marked: ^marked} = record} -> end_grace(state, record, grace)
      _ -> %{state | graces: Map.delete(state.graces, key)}
    end
  end

  defp end_grace(state, %{target: %{key: key}} = record, grace) do
    case {in_use(record), grace.from} do
      # The last reader of another process has just gone: now the grace begins.
      {{:ok, _version, 0}, nil} ->
        wait(state, key, %{grace | from: now()})

      {{:ok, _version, 0}, _from} ->
        remove_unreferenced(state, record, grace)

      {{:ok, _version, _readers}, _from} ->
        wait(state, key, %{grace | from: nil})

      # Nobody can find or read it any more.
      {{:error, code}, _from} when code in [:not_found, :corrupted, :truncated] ->
        remove_unreferenced(state, record, grace)

      {{:error, _cannot_tell}, _from} ->
        wait(state, key, %{grace | from: nil})
    end
  end

  # Whatever the registry says instead, or if it says nothing, it is looked at again.
  defp remove_unreferenced(state, %{target: %{key: key}} = record, grace) do
    case remove(record, {:mark, record.marked}, :unreferenced) do
      :removed -> %{state | graces: Map.delete(state.graces, key)}
      _kept_or_error -> wait(state, key, grace, pause(state))
    end
  end

  # -- idle -----------------------------------------------------------------------------------

  # A region that is marked and has a timeout is watched already.
  defp begin_idle(state, %{target: %{key: key}, token: token} = record) do
    case state.seen do
      %{^key => %{token: ^token}} -> state
      _ -> look(state, record)
    end
  end

  defp idle_over(state, key, token) do
    case Table.record(key) do
      {:ok, %Record{token: ^token, timeout: timeout} = record} when timeout != nil ->
        look(state, record)

      _ ->
        forget(state, key, token)
    end
  end

  # Its timeout may be another by now.
  defp look_anew(%{target: %{key: key}, token: token} = record, state) do
    case state.seen do
      %{^key => %{token: ^token} = seen} -> look_later(state, record, seen)
      _ -> look(state, record)
    end
  end

  defp look(state, %{target: %{key: key}} = record) do
    %{token: token, used: used} = seen = see(record)

    case state.seen[key] do
      # Of this region, not of an earlier one of the name.
      %{token: ^token, used: ^used} = before when not seen.busy ->
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

    busy =
      cached? or readers > 0 or Table.count(key) > 0 or Writers.holder(key) != nil or
        (version == 0 and being_filled?(record))

    %{token: token, used: {version, uses}, uses: uses, busy: busy}
  end

  # `share/2` of a stream takes as long as the stream does.
  defp being_filled?(%{filled_by: nil}), do: false
  defp being_filled?(%{filled_by: pid}), do: Process.alive?(pid)

  defp look_later(state, %{target: %{key: key}} = record, seen) do
    left = seen.since + record.timeout - now()
    pause = left |> min(div(record.timeout, 2)) |> min(@longest_pause_ms) |> max(1)
    cancel(seen[:timer])
    timer = :erlang.start_timer(pause, self(), {:idle, key})
    %{state | seen: Map.put(state.seen, key, Map.put(seen, :timer, timer))}
  end

  defp idle(state, %{target: %{key: key}} = record, seen) do
    case remove(record, {:idle, record.token, seen.uses}, :idle) do
      :removed -> forget(state, key, record.token)
      _used_meanwhile -> look_later(state, record, %{seen | since: now()})
    end
  end

  defp forget(state, key, token) do
    case state.seen do
      %{^key => %{token: ^token} = seen} ->
        cancel(seen[:timer])
        %{state | seen: Map.delete(state.seen, key)}

      _ ->
        state
    end
  end

  defp forget_grace(state, key, marked) do
    case state.graces do
      %{^key => %{marked: ^marked} = grace} ->
        cancel(grace[:timer])
        %{state | graces: Map.delete(state.graces, key)}

      _ ->
        state
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
