defmodule Snakepit.SharedMemory.Admission do
  @moduledoc false
  # Which allocations the registry lets in, which it refuses and which wait for room; a part of the
  # registry, on its state.

  require Logger

  alias Snakepit.SharedMemory.{Error, Jobs, Ledger, Limits, Registry, Table, Target, Telemetry}
  alias Snakepit.SharedMemory.Waiting

  @doc "Lets an allocation in, has it wait, or answers that it is refused."
  @spec ask(Registry.t(), Table.Record.t(), map(), atom(), GenServer.from()) :: Registry.t()
  def ask(state, record, settings, operation, from) do
    request = %{
      record: record,
      settings: settings,
      operation: operation,
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

  # The name may have been taken while it waited.
  defp let_in(state, %{request: request}) do
    case unused(request.record, request.operation) do
      :ok ->
        {:ok, approached} = fits(state, request)
        state |> begin(request) |> alert(:approached, approached)

      {:error, error} ->
        GenServer.reply(request.from, {:error, error})
        state
    end
  end

  @doc "Ends a waiting whose caller has died."
  @spec withdraw(Registry.t(), Waiting.id()) :: Registry.t()
  def withdraw(state, id) do
    {waiter, waiting} = Waiting.remove(state.waiting, id)
    stop_waiting(%{state | waiting: waiting}, waiter)
  end

  @doc "Ends a waiting whose time is over, if it has not ended meanwhile."
  @spec time_out(Registry.t(), Waiting.id()) :: Registry.t()
  def time_out(state, id) do
    case Waiting.remove(state.waiting, id) do
      {nil, _waiting} ->
        state

      {%{request: request} = waiter, waiting} ->
        error = Limits.error(waiter.state, request.record, request.operation, waiter.wait)
        GenServer.reply(request.from, {:error, error})
        stop_waiting(%{state | waiting: waiting}, waiter)
    end
  end

  @doc "Ends the waiting of an allocation that its caller has given up, if it still waits."
  @spec abandon(Registry.t(), reference()) :: Registry.t()
  def abandon(state, token) do
    case Waiting.find_by(state.waiting, &(&1.request.record.token == token)) do
      nil -> state
      id -> drain(withdraw(state, id))
    end
  end

  defp stop_waiting(state, waiter) do
    Process.cancel_timer(waiter.timer)
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
        if Limits.never?(limit, request.bytes),
          do: refuse(state, request, limit),
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
    # Its id is the next one, and the timer is part of what is queued.
    timer = Process.send_after(self(), {:waited, state.waiting.next}, wait)

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

  # Counted from now on; the files are created by a job.
  defp begin(state, %{record: record, operation: operation} = request) do
    token = record.token
    Table.put_record(%{record | state: {:creating, token}})
    {:ok, pid} = Jobs.create(self(), token, Target.native(record.target, request.settings))

    %{state | ledger: Ledger.own(state.ledger, record)}
    |> Registry.put_job(token, :create, record.target.key, request.from, pid, operation)
  end

  defp unused(%{target: target}, operation) do
    if Table.known?(target.key) do
      {:error,
       Error.new(:already_exists, "region already exists: #{target.id}",
         region: target.id,
         operation: operation,
         remedy: "choose another name, or deallocate the region first"
       )}
    else
      :ok
    end
  end

  defp alert(state, _event, []), do: state

  defp alert(state, event, limits) do
    for limit <- limits do
      recommendation = Limits.recommendation(limit)

      if event == :approached do
        Logger.warning("shared memory: limit #{inspect(limit.limit)}: #{recommendation}")
      end

      Telemetry.limit(event, limit, recommendation)
    end

    state
  end
end
