defmodule Snakepit.SharedMemory.Recorder do
  @moduledoc false
  # Counts what is done: calls, bytes, errors by code and durations, in `:counters` that the caller
  # adds to, with no process in between. `Stats` makes something of them.
  #
  # Reads and writes that succeed are counted by the NIF library (`native/nif/src/tally.rs`): a
  # counter of the BEAM is a call of its own, which would be a tenth of a read. Only their errors,
  # and copies out of a handle, are counted here.
  #
  # Counters only grow. What they were at the last reset is kept and taken off, so that a reset
  # loses nothing that is being counted.

  alias Snakepit.SharedMemory.{Error, Histogram, Native, Telemetry}

  # An atom: the cheapest key there is.
  @key :snakepit_shm_recorder
  # In a table, for a persistent term that is replaced has every process of the VM looked through.
  @table :snakepit_shm_recorder_baseline

  @native [:read, :write]
  # Their calls and errors are counted, and not how long they take. Those that ask what was counted are
  # not among them: they fail when nothing is.
  @untimed ~w(get_region_info list_regions handle history health_check lend_region take_back_region
              set_active unsubscribe release_session release_worker reconfigure increment decrement
              get_count get_references validate_access apply_security_policy secure_cleanup)a
  @events ~w(allocated deallocated sweeps removed corrupted recovered cleared_readers failed
             owner_down process_ended events_dropped)a

  @type calls :: %{
          count: non_neg_integer(),
          bytes: non_neg_integer(),
          errors: %{atom() => pos_integer()},
          times: Histogram.counts()
        }

  @type recorded :: %{
          since: DateTime.t(),
          operations: %{atom() => calls()},
          events: %{atom() => non_neg_integer()}
        }

  # -- switching ------------------------------------------------------------------------------

  @doc "Starts counting from zero unless it is going on, or stops."
  @spec setup(boolean()) :: :ok
  def setup(false) do
    # The NIF library is not loaded for this alone.
    if on?(), do: :ok = Native.monitor(false)
    :persistent_term.erase(@key)
    :ok
  end

  def setup(true), do: if(on?(), do: :ok, else: start())

  defp start do
    codes = Error.codes() ++ [:exception, :other]
    errors = 2 + length(codes)
    timed = Enum.map(timed(), &{&1, errors + Histogram.buckets()})
    untimed = Enum.map(@untimed, &{&1, errors})

    {operations, size} =
      Enum.map_reduce(timed ++ untimed, length(@events), fn {operation, width}, before ->
        {{operation, before + 1}, before + width}
      end)

    layout = %{
      counters: :counters.new(size, [:atomics]),
      operations: Map.new(operations),
      codes: indexed(codes, &(&1 + 2)),
      times: errors,
      events: indexed(@events, &(1 + &1))
    }

    # Whoever finds counters finds what they began with.
    begin(layout)
    :persistent_term.put(@key, layout)
    Native.monitor(true)
  end

  defp timed, do: Telemetry.operations() ++ [:cleanup]

  defp begin(layout) do
    :ets.insert(@table, {:baseline, raw(layout), Native.totals(), DateTime.utc_now()})
    :ok
  end

  @doc "Makes the table of the baseline, which belongs to the caller: the application."
  @spec create_table() :: :ok
  def create_table do
    :ets.new(@table, [:named_table, :public, :set])
    :ok
  end

  defp indexed(names, place) do
    for {name, index} <- Enum.with_index(names), into: %{}, do: {name, place.(index)}
  end

  @doc "Whether anything is counted."
  @spec on?() :: boolean()
  def on?, do: :persistent_term.get(@key, nil) != nil

  # -- counting, in the caller ----------------------------------------------------------------

  @doc "Counts a call of an operation that took so many native units of time."
  @spec record(atom(), integer(), term(), non_neg_integer() | nil) :: :ok
  def record(operation, _duration, {:error, error}, _bytes), do: error(operation, error)
  def record(operation, _duration, _result, _bytes) when operation in @native, do: :ok

  def record(operation, duration, _result, bytes) do
    with %{counters: counters, operations: %{^operation => at}} = layout <- layout() do
      ns = System.convert_time_unit(duration, :native, :nanosecond)
      :counters.add(counters, at + layout.times + Histogram.bucket(ns), 1)
      count(counters, at, bytes)
    else
      _off -> :ok
    end
  end

  @doc "Counts a call that is not timed, and answers its answer."
  @spec answered(atom(), answer) :: answer when answer: term()
  def answered(operation, {:error, error} = answer) do
    error(operation, error)
    answer
  end

  def answered(operation, answer) do
    with %{counters: counters, operations: %{^operation => at}} <- layout() do
      count(counters, at, nil)
    end

    answer
  end

  @doc "Counts a copy of so many bytes that was made beside the NIF library's readers."
  @spec copied(non_neg_integer()) :: :ok
  def copied(bytes) do
    with %{counters: counters, operations: %{read: at}} <- layout() do
      count(counters, at, bytes)
    else
      nil -> :ok
    end
  end

  defp count(counters, at, bytes) do
    if bytes, do: :counters.add(counters, at + 1, bytes)
    :counters.add(counters, at, 1)
  end

  @doc "Counts an error, and answers it: for the end of a path that must not be slowed otherwise."
  @spec failed(atom(), error) :: {:error, error} when error: term()
  def failed(operation, error) do
    error(operation, error)
    {:error, error}
  end

  @doc "Counts a call that raised, threw or exited."
  @spec raised(atom()) :: :ok
  def raised(operation), do: error(operation, %{code: :exception})

  defp error(operation, error) do
    with %{counters: counters, codes: codes, operations: %{^operation => at}} <- layout() do
      code = if is_map(error), do: Map.get(error, :code)
      :counters.add(counters, at + Map.get(codes, code, codes.other), 1)
    else
      _off -> :ok
    end
  end

  @doc "Counts something that is no call."
  @spec event(atom(), non_neg_integer()) :: :ok
  def event(event, amount \\ 1) do
    with %{counters: counters, events: %{^event => at}} when amount > 0 <- layout() do
      :counters.add(counters, at, amount)
    else
      _off -> :ok
    end
  end

  defp layout, do: :persistent_term.get(@key, nil)

  # -- reading --------------------------------------------------------------------------------

  @doc "Starts all counts from zero."
  @spec reset() :: :ok
  def reset do
    if layout = layout(), do: begin(layout), else: :ok
  rescue
    # The application stops, and its table with it.
    ArgumentError -> :ok
  end

  @doc "What has been counted since the last reset, nil when nothing is."
  @spec recorded() :: recorded() | nil
  def recorded do
    with %{} = layout <- layout(), {raw, totals, since} <- baseline() do
      own = layout |> raw() |> Enum.zip_with(raw, &-/2) |> List.to_tuple()
      native = Native.totals()

      operations =
        for {operation, at} <- layout.operations, into: %{} do
          {operation, own |> calls(operation, at, layout) |> merge(operation, native, totals)}
        end

      events = for {event, at} <- layout.events, into: %{}, do: {event, elem(own, at - 1)}
      %{since: since, operations: operations, events: events}
    end
  end

  defp baseline do
    [{:baseline, raw, totals, since}] = :ets.lookup(@table, :baseline)
    {raw, totals, since}
  rescue
    ArgumentError -> nil
  end

  defp raw(%{counters: counters}) do
    for index <- 1..:counters.info(counters).size, do: :counters.get(counters, index)
  end

  # Counters begin with 1, tuples with 0.
  defp calls(own, operation, at, layout) do
    errors =
      for {code, offset} <- layout.codes, (n = elem(own, at - 1 + offset)) > 0, into: %{} do
        {code, n}
      end

    %{
      count: elem(own, at - 1),
      bytes: elem(own, at),
      errors: errors,
      times: times(own, operation, at - 1 + layout.times)
    }
  end

  defp times(_own, operation, _first) when operation in @untimed,
    do: List.duplicate(0, Histogram.buckets())

  defp times(own, _operation, first) do
    for index <- first..(first + Histogram.buckets() - 1), do: elem(own, index)
  end

  defp merge(calls, operation, native, before) when operation in @native do
    {now, before} = {Map.fetch!(native, operation), Map.fetch!(before, operation)}

    %{
      calls
      | count: calls.count + now.calls - before.calls,
        bytes: calls.bytes + now.bytes - before.bytes,
        times:
          Enum.zip_with([calls.times, now.times, before.times], fn [a, b, c] -> a + b - c end)
    }
  end

  defp merge(calls, _operation, _native, _before), do: calls
end
