defmodule Snakepit.SharedMemory.Telemetry.Outbox do
  @moduledoc false
  # Emits the events of this library's own processes.
  #
  # Handlers are others' code, which may be slow, hang, or call this library: none of our processes
  # runs them. They post their events here, and a worker of this process emits one after the other,
  # in the order in which they came. While a handler does not return, events wait, up to a bound;
  # what comes then is dropped and counted. The end of the application waits for none of it long.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Bounded, Recorder}

  # Called only when it is loaded.
  @compile {:no_warn_undefined, :telemetry}

  @most 1_000
  # What is left to be emitted when the application ends has so long.
  @linger_ms 500

  @typedoc "What the worker does: the event, since when, and how many wait or had to be dropped."
  @type status ::
          :idle
          | %{
              event: [atom()],
              busy_ms: non_neg_integer(),
              waiting: non_neg_integer(),
              dropped: non_neg_integer()
            }

  @spec start_link(term()) :: GenServer.on_start()
  def start_link(_config), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc "Has an event emitted. Without this process, while the application stops, it is lost."
  @spec post([atom()], map(), map()) :: :ok
  def post(event, measurements, metadata) do
    GenServer.cast(__MODULE__, {:post, {event, measurements, metadata}})
  end

  # -- server ---------------------------------------------------------------------------------

  # current: event and since when it is being emitted, nil while there is none
  # dropped: since the worker was idle the last time
  defstruct [:worker, :current, queue: :queue.new(), waiting: 0, dropped: 0]

  @impl true
  def init(nil) do
    # So that `terminate/2` is called.
    Process.flag(:trap_exit, true)
    {:ok, %__MODULE__{}}
  end

  @impl true
  def handle_call(:status, _from, state), do: {:reply, status(state), state}

  def handle_call(message, {pid, _tag}, state) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory events: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, state}
  end

  @impl true
  def handle_cast({:post, {[_ | _], %{}, %{}} = event}, state), do: {:noreply, put(state, event)}
  def handle_cast(message, state), do: handle_info(message, state)

  @impl true
  def handle_info({:emitted, pid}, %{worker: {pid, _monitor}} = state) do
    {:noreply, next(%{state | current: nil})}
  end

  # A handler ended the process that it runs in.
  def handle_info({:DOWN, monitor, :process, pid, _reason}, %{worker: {pid, monitor}} = state) do
    {:noreply, next(%{state | worker: nil, current: nil})}
  end

  def handle_info(message, state) do
    Logger.warning("shared memory events: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, state}
  end

  @impl true
  def terminate(_reason, state), do: drain(state, now() + @linger_ms)

  defp drain(%{current: nil}, _deadline), do: :ok

  defp drain(%{worker: {pid, monitor} = worker} = state, deadline) do
    receive do
      {:emitted, ^pid} = done -> drain(elem(handle_info(done, state), 1), deadline)
      {:DOWN, ^monitor, _, _, _} = down -> drain(elem(handle_info(down, state), 1), deadline)
    after
      max(deadline - now(), 0) -> Bounded.stop(worker)
    end
  end

  # -- one after the other --------------------------------------------------------------------

  defp put(%{current: nil} = state, event), do: emit(state, event)

  defp put(%{waiting: @most} = state, _event) do
    if state.dropped == 0, do: warn(state)
    Recorder.event(:events_dropped)
    %{state | dropped: state.dropped + 1}
  end

  defp put(state, event) do
    %{state | queue: :queue.in(event, state.queue), waiting: state.waiting + 1}
  end

  defp warn(%{current: {event, since}}) do
    Logger.warning(
      "shared memory: a handler of #{inspect(event)} has not returned for #{now() - since} ms, " <>
        "#{@most} events wait, and those that come now are dropped; remedy: have it hand its work " <>
        "to a process"
    )
  end

  defp next(state) do
    case :queue.out(state.queue) do
      {{:value, event}, queue} -> emit(%{state | queue: queue, waiting: state.waiting - 1}, event)
      {:empty, _queue} -> %{state | dropped: 0}
    end
  end

  defp emit(%{worker: nil} = state, event) do
    outbox = self()
    emit(%{state | worker: Bounded.start(fn -> work(outbox) end)}, event)
  end

  defp emit(%{worker: {pid, _monitor}} = state, {name, _measurements, _metadata} = event) do
    send(pid, {:emit, event})
    %{state | current: {name, now()}}
  end

  # What a handler was sent, or has spawned with a link, is its own.
  defp work(outbox) do
    receive do
      {:emit, {event, measurements, metadata}} ->
        try do
          :telemetry.execute(event, measurements, metadata)
        catch
          _kind, _reason -> :ok
        end

        send(outbox, {:emitted, self()})

      _stray ->
        :ok
    end

    work(outbox)
  end

  defp status(%{current: nil}), do: :idle

  defp status(%{current: {event, since}} = state) do
    %{event: event, busy_ms: now() - since, waiting: state.waiting, dropped: state.dropped}
  end

  defp now, do: System.monotonic_time(:millisecond)
end
