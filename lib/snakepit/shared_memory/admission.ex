defmodule Snakepit.SharedMemory.Admission do
  @moduledoc false
  # Which allocations the registry lets in, which it refuses and which wait for room; a part of the
  # registry, on its state.

  require Logger

  alias Snakepit.SharedMemory.{Alerts, Error, Jobs, Ledger, Limits, Registry, Table, Target}
  alias Snakepit.SharedMemory.{Telemetry, Waiting}

  @doc "Lets an allocation in, has it wait, or answers that it is refused."
  @spec ask(Registry.t(), Table.Record.t(), map(), atom(), integer(), GenServer.from()) ::
          Registry.t()
  def ask(state, record, settings, operation, since, from) do
    request = %{
      record: record,
      settings: settings,
      operation: operation,
      since: since,
      from: from,
      scopes: Limits.scopes(record),
      bytes: record.bytes
    }

    with :ok <- unused(record, operation),
         {:ok, approached} <- room(state, request) do
      state |> begin(request) |> alert(:approached, approached)
    else
      {:error, error} ->
        GenServer.reply(from, {:error, error})
        state

      {:full, limit} ->
        state |> full(request, limit) |> alert(:reached, [limit])
    end
  end

  @doc "Lets in who waits, as far as there is room."
  @spec drain(Registry.t()) :: Registry.t()
  def drain(state) do
    if Waiting.size(state.waiting) == 0, do: state, else: drain_waiting(state)
  end

  defp drain_waiting(state) do
    case Waiting.next(state.waiting, state.ledger.usage, Registry.config(state)) do
      {nil, waiting} ->
        %{state | waiting: waiting}

      {waiter, waiting} ->
        %{state | waiting: waiting}
        |> stop_waiting(waiter)
        |> let_in(waiter)
        |> drain()
    end
  end

  # The name may have been taken while it waited, or the limits may have been lowered.
  defp let_in(state, %{request: request}) do
    with :ok <- unused(request.record, request.operation),
         {:ok, approached} <- fits(state, request) do
      state |> begin(request) |> alert(:approached, approached)
    else
      {:error, error} ->
        GenServer.reply(request.from, {:error, error})
        state

      {:full, limit} ->
        refuse(state, request, never(state, request) || limit)
    end
  end

  defp never(state, request) do
    Limits.never(state.ledger.usage, request.scopes, request.bytes, Registry.config(state))
  end

  @doc "With other limits: refuses those who never can have room now, and lets in who may."
  @spec reconsider(Registry.t()) :: Registry.t()
  def reconsider(state) do
    state.waiting
    |> Waiting.all(&never(state, &1.request))
    |> Enum.reduce(state, fn id, state ->
      {%{request: request} = waiter, waiting} = Waiting.remove(state.waiting, id)
      state = stop_waiting(%{state | waiting: waiting}, waiter)
      refuse(state, request, never(state, request))
    end)
    |> drain()
  end

  @doc "Ends a waiting whose caller has died."
  @spec withdraw(Registry.t(), Waiting.id()) :: Registry.t()
  def withdraw(state, id) do
    {waiter, waiting} = Waiting.remove(state.waiting, id)
    stop_waiting(%{state | waiting: waiting}, waiter)
  end

  @doc "Ends a waiting whose time is over by its own timer, if it has not ended meanwhile."
  @spec time_out(Registry.t(), Waiting.id(), reference()) :: Registry.t()
  def time_out(state, id, timer) do
    case Waiting.remove(state.waiting, id) do
      {%{request: request, timer: ^timer} = waiter, waiting} ->
        error = Limits.error(waiter.state, request.record, request.operation, waiter.wait)
        GenServer.reply(request.from, {:error, error})
        stop_waiting(%{state | waiting: waiting}, waiter)

      _ended ->
        state
    end
  end

  @doc "Ends the waiting of an allocation that its caller has given up, if it still waits."
  @spec abandon(Registry.t(), reference()) :: Registry.t()
  def abandon(state, token) do
    case Waiting.all(state.waiting, &(&1.request.record.token == token)) do
      [] -> state
      [id] -> drain(withdraw(state, id))
    end
  end

  defp stop_waiting(state, waiter) do
    :erlang.cancel_timer(waiter.timer)
    Process.demonitor(waiter.monitor, [:flush])
    %{state | monitors: Map.delete(state.monitors, waiter.monitor)}
  end

  # Behind those who wait for the same: nobody is overtaken.
  defp room(state, request) do
    case Waiting.ahead(state.waiting, request.scopes) do
      nil -> fits(state, request)
      limit -> {:full, limit}
    end
  end

  defp fits(state, request) do
    config = Registry.config(state)

    with {:ok, _usage, approached} <-
           Limits.admit(state.ledger.usage, request.scopes, request.bytes, config) do
      {:ok, approached}
    end
  end

  defp full(state, request, limit) do
    case Registry.config(state).on_limit do
      {:throttle, wait} ->
        # Of all limits, not only of the one that is reached now.
        if never = never(state, request),
          do: refuse(state, request, never),
          else: wait(state, request, limit, wait)

      :reject ->
        refuse(state, request, limit)
    end
  end

  defp refuse(state, request, limit) do
    error = Limits.error(limit, request.record, request.operation)
    GenServer.reply(request.from, {:error, error})
    state
  end

  defp wait(state, %{from: {caller, _tag}} = request, limit, wait) do
    monitor = Process.monitor(caller)
    # It may have waited already, for a registry that was killed.
    left = (request.since + wait - System.monotonic_time(:millisecond)) |> min(wait) |> max(0)
    # Its id is the next one, and the timer is part of what is queued.
    timer = :erlang.start_timer(left, self(), {:waited, state.waiting.next})

    waiter = %{
      request: request,
      scopes: request.scopes,
      bytes: request.bytes,
      state: limit,
      monitor: monitor,
      timer: timer,
      wait: wait
    }

    {id, waiting} = Waiting.add(state.waiting, waiter)
    %{state | waiting: waiting, monitors: Map.put(state.monitors, monitor, {:waiter, id})}
  end

  # Counted from now on. What its caller has claimed already is there.
  defp begin(state, %{record: record, settings: %{writer: writer}} = request) do
    Table.put_record(%{record | state: {:creating, record.token}})
    state = %{state | ledger: Ledger.own(state.ledger, record)}
    {answer, state} = Registry.take_in(state, record, writer, request.operation)
    GenServer.reply(request.from, answer)
    state
  end

  # The files are created by a job.
  defp begin(state, %{record: record, operation: operation} = request) do
    %{token: token, target: %{key: key} = target} = record
    Table.put_record(%{record | state: {:creating, token}})
    taken? = fn -> match?({:ok, %{token: ^token}}, Table.record(key)) end
    work = if record.adopted, do: &Jobs.adopt/4, else: &Jobs.create/4
    {:ok, pid} = work.(self(), token, Target.native(target, request.settings), taken?)

    %{state | ledger: Ledger.own(state.ledger, record)}
    |> Registry.put_job(token, :create, key, request.from, pid, operation)
  end

  defp unused(%{target: target} = record, operation) do
    if Table.known?(target.key), do: {:error, taken(record, operation)}, else: :ok
  end

  defp taken(%{adopted: true, target: target}, operation) do
    Error.new(:segment_busy, "region #{target.id} belongs to this VM already",
      region: target.id,
      operation: operation,
      remedy: "use it by its id; get_region_info/2 says who owns it"
    )
  end

  defp taken(%{target: target}, operation) do
    Error.new(:already_exists, "region already exists: #{target.id}",
      region: target.id,
      operation: operation,
      remedy: "choose another name, or deallocate the region first"
    )
  end

  @doc "Notes that something has gone: a limit that was said to be near may be said to be so again."
  @spec eased(Registry.t(), [Limits.scope()]) :: Registry.t()
  def eased(%{told: told} = state, _scopes) when told == %{}, do: state

  def eased(state, scopes) do
    config = Registry.config(state)
    states = Enum.flat_map(scopes, &Limits.states(state.ledger.usage, &1, config))
    %{state | told: Alerts.eased(state.told, states)}
  end

  defp alert(state, _event, []), do: state

  defp alert(state, :approached, limits) do
    {due, told} = Alerts.due(state.told, limits, System.monotonic_time(:millisecond))

    for limit <- due do
      recommendation = Limits.recommendation(limit)
      Logger.warning("shared memory: limit #{inspect(limit.limit)}: #{recommendation}")
      Telemetry.limit(:approached, limit, recommendation)
    end

    %{state | told: told}
  end

  defp alert(state, :reached, limits) do
    for limit <- limits, do: Telemetry.limit(:reached, limit, Limits.recommendation(limit))
    state
  end
end
