defmodule Snakepit.SharedMemory.Telemetry do
  @moduledoc """
  The events that this library emits.

  They go through `:telemetry` where that application is there, which then starts before ours;
  without it, and with `telemetry_enabled: false` in the configuration, they are no-ops that cost one
  `:persistent_term` lookup. Each operation is a span: `:start`, then `:stop` or `:exception`. All
  times are in native units: `System.convert_time_unit(duration, :native, :microsecond)`.

  What a call emits it emits in its caller: a handler that is slow makes the call slow. What this library's
  own processes have to tell is emitted by a process that does nothing else, in the order in which it
  happened, a little later. While a handler does not return, up to 1,000 events wait; what comes then
  is dropped, and counted in `:events_dropped` of `Snakepit.SharedMemory.stats/0`.

  | Event (prefix `[:snakepit, :shared_memory]`) | Emitted by |
  |---|---|
  | `[:region, :allocate, _]` | `Snakepit.SharedMemory.allocate_region/2` |
  | `[:region, :adopt, _]` | `Snakepit.SharedMemory.adopt_region/2` |
  | `[:region, :map, _]` | `Snakepit.SharedMemory.map_region/2` |
  | `[:region, :unmap, _]` | `Snakepit.SharedMemory.unmap_region/2` |
  | `[:region, :deallocate, _]` | `Snakepit.SharedMemory.deallocate_region/2` |
  | `[:region, :write, _]` | `Snakepit.SharedMemory.write/3` |
  | `[:region, :read, _]` | `Snakepit.SharedMemory.read/2` |
  | `[:region, :seal, _]` | `Snakepit.SharedMemory.seal/2` |
  | `[:region, :binary, _]` | `Snakepit.SharedMemory.binary/2` |
  | `[:region, :share, _]` | `Snakepit.SharedMemory.share/2` |
  | `[:region, :fetch, _]` | `Snakepit.SharedMemory.fetch/2` |
  | `[:region, :subscribe, _]` | `Snakepit.SharedMemory.subscribe/2` |
  | `[:region, :with_writer, _]` | `Snakepit.SharedMemory.with_writer/3`, the wait and the function included |
  | `[:health, :checked]` | `Snakepit.SharedMemory.health_check/1`, and the periodic check |
  | `[:cleanup, :owner_down]` | a process of this VM died that owned or had mapped regions |
  | `[:cleanup, :process_ended]` | another OS process of the namespace has ended |
  | `[:cleanup, :swept]` | a sweep found something to do, or `Snakepit.SharedMemory.cleanup_regions/1` |
  | `[:cleanup, :failed]` | a sweep failed, or could not be begun |
  | `[:config, :changed]` | `Snakepit.SharedMemory.reconfigure/1`, when something changed |
  | `[:cleanup, :marked]` | the last reference to a region has gone that goes with it |
  | `[:cleanup, :expired]` | a region that nobody used was removed |
  | `[:cleanup, :released]` | the regions of a session or worker were removed |
  | `[:bridge, :fallback]` | a value of a call through `Snakepit.SharedMemory.Bridge` did not travel as a handle |
  | `[:limit, :approached]` | an allocation that brings a limit to 80 %; again after it was below 70 %, every 10 s at most |
  | `[:limit, :reached]` | an allocation for which a limit leaves no room |

  | Event | Measurements | Metadata |
  |---|---|---|
  | `:start` | `system_time`, `monotonic_time` | `region` (id or nil) |
  | `:stop` | `duration`, `monotonic_time`, `bytes` where bytes moved | `region`, `result`: `:ok` or an error code |
  | `:exception` | `duration`, `monotonic_time` | `region`, `kind`, `reason`, `stacktrace` |
  | `[:cleanup, :owner_down]` | `regions`, `mappings` (counts) | `pid` |
  | `[:cleanup, :process_ended]` | `count` (1) | `namespace`, `os_pid`, `name` |
  | `[:cleanup, :swept]` | `removed`, `corrupted`, `recovered`, `cleared_readers` (counts) | `namespace`, `source`: `:janitor` or `:call`, `report` as from `cleanup_regions/1` |
  | `[:cleanup, :failed]` | `count` (1) | `namespace`, `reason` |
  | `[:config, :changed]` | `applied`, `needs_restart` (counts of keys) | `namespace`, `applied` and `needs_restart` (keys), `changes`: `%{key => {old, new}}` |
  | `[:cleanup, :marked]` | `count` (1) | `region` |
  | `[:cleanup, :expired]` | `count` (1), `bytes` | `region`, `reason`: `:idle` or `:unreferenced` |
  | `[:cleanup, :released]` | `regions`, `failed` (counts), `bytes` | `kind`: `:session` or `:worker`, `id` |
  | `[:bridge, :fallback]` | `count` (1), `bytes` | `pool`, `command`, `direction`: `:arguments` or `:result`, `reason`: an error code, `:unresolved` or `:unknown` |
  | `[:limit, _]` | `used`, `maximum`, both in what the metadata says | `limit` (the key of the configuration), `scope`: `:node`, `{:process, pid}` or `{:session, id}`, `unit`: `:regions` or `:bytes`, `recommendation` |
  | `[:health, :checked]` | `duration` (native units), `warnings`, `critical` (counts) | `namespace`, `source`: `:monitor` or `:call`, `status`, `report` as from `health_check/1` |

  The bridge also emits Snakepit's own events about zero-copy values, under Snakepit's names, so that what
  listens to those sees these too. `duration_ms` is a float, in milliseconds.

  | Event of Snakepit's | Emitted when | Measurements | Metadata |
  |---|---|---|---|
  | `[:snakepit, :zero_copy, :export]` | an argument was shared | `duration_ms`, `bytes` | `pool`, `command`, `subsystem` |
  | `[:snakepit, :zero_copy, :import]` | a result was fetched | `duration_ms`, `bytes` | `pool`, `command`, `subsystem` |
  | `[:snakepit, :zero_copy, :fallback]` | a value did not travel as a handle | `duration_ms`, `bytes` | `pool`, `command`, `subsystem`, `reason` |
  """

  alias Snakepit.SharedMemory.{Native, Recorder}
  alias Snakepit.SharedMemory.Telemetry.Outbox

  # Called only when it is loaded.
  @compile {:no_warn_undefined, :telemetry}

  @prefix [:snakepit, :shared_memory]
  # An atom: the cheapest key there is, for it is looked up by every read.
  @key :snakepit_shm_telemetry

  # Events that are no span. One line declares a family, or a line's word an event of it; they are
  # emitted with `emit/4`, or posted with `post/4` by processes of our own. Each has a row in the table above, which a test compares.
  @families [
    cleanup: ~w(owner_down process_ended swept failed marked expired released)a,
    config: ~w(changed)a,
    limit: ~w(approached reached)a,
    bridge: ~w(fallback)a,
    health: ~w(checked)a
  ]

  # Each is a span, emitted with `span/4`, and has a row in the table as well.
  @operations ~w(allocate adopt map unmap deallocate write read seal binary share fetch subscribe
                 with_writer)a

  @doc "Every event name that can be emitted."
  @spec events() :: [[atom()]]
  def events do
    spans =
      for operation <- @operations, step <- [:start, :stop, :exception] do
        @prefix ++ [:region, operation, step]
      end

    plain = for {family, events} <- @families, event <- events, do: @prefix ++ [family, event]
    plain ++ spans
  end

  @doc false
  @spec operations() :: [atom()]
  def operations, do: @operations

  @doc false
  @spec setup(boolean()) :: :ok
  def setup(wanted? \\ true) do
    loaded? = Code.ensure_loaded?(:telemetry) and function_exported?(:telemetry, :execute, 3)
    tell(wanted? and loaded?)
  end

  @doc false
  @spec forget() :: boolean()
  def forget do
    tell(false)
    :persistent_term.erase(@key)
  end

  # The NIF library is told too: a read that had to look here would take a tenth longer. It is not
  # loaded for this alone.
  defp tell(on?) do
    if on? or enabled?(), do: :ok = Native.trace(on?)
    :persistent_term.put(@key, on?)
  end

  @doc "Whether events are emitted at all."
  @spec enabled?() :: boolean()
  def enabled?, do: :persistent_term.get(@key, false)

  # Emits an event of one of the families, which is an error in the program when it is not declared.
  @doc false
  @spec emit(atom(), atom(), map(), map()) :: :ok
  for {family, events} <- @families do
    def emit(unquote(family), event, measurements, metadata) when event in unquote(events) do
      if enabled?() do
        :telemetry.execute(@prefix ++ [unquote(family), event], measurements, metadata)
      end

      :ok
    end
  end

  # The same from a process of our own, which must not run others' code: somebody else does, soon.
  @doc false
  @spec post(atom(), atom(), map(), map()) :: :ok
  for {family, events} <- @families do
    def post(unquote(family), event, measurements, metadata) when event in unquote(events) do
      if enabled?(), do: Outbox.post(@prefix ++ [unquote(family), event], measurements, metadata)
      :ok
    end
  end

  # Under Snakepit's own names; `duration` is in native units.
  @doc false
  @spec zero_copy(:export | :import | :fallback, integer(), non_neg_integer(), map()) :: :ok
  def zero_copy(event, duration, bytes, metadata) when event in [:export, :import, :fallback] do
    if enabled?() do
      milliseconds = System.convert_time_unit(duration, :native, :nanosecond) / 1.0e6
      measurements = %{duration_ms: milliseconds, bytes: bytes}
      metadata = Map.put(metadata, :subsystem, :shared_memory)
      :telemetry.execute([:snakepit, :zero_copy, event], measurements, metadata)
    end

    :ok
  end

  # Every operation but `read` and `write` without a listener passes here, and is counted.
  # `bytes` is called for the result of an operation that succeeded; nil when no bytes moved.
  @doc false
  @spec span(atom(), String.t() | nil, (result -> non_neg_integer() | nil), (() -> result)) ::
          result
        when result: term()
  def span(operation, region, bytes \\ fn _result -> nil end, fun)
      when operation in @operations do
    cond do
      enabled?() -> traced(operation, region, bytes, fun)
      Recorder.on?() -> timed(operation, bytes, fun)
      true -> fun.()
    end
  end

  @doc false
  @spec owner_down(pid(), non_neg_integer(), non_neg_integer()) :: :ok
  def owner_down(pid, regions, mappings) do
    Recorder.event(:owner_down)
    post(:cleanup, :owner_down, %{regions: regions, mappings: mappings}, %{pid: pid})
  end

  @doc false
  @spec process_ended(String.t(), non_neg_integer(), String.t()) :: :ok
  def process_ended(namespace, os_pid, name) do
    Recorder.event(:process_ended)
    metadata = %{namespace: namespace, os_pid: os_pid, name: name}
    post(:cleanup, :process_ended, %{count: 1}, metadata)
  end

  @doc false
  @spec swept(String.t(), :janitor | :call, map()) :: :ok
  def swept(namespace, source, report) do
    measurements = %{
      removed: length(report.removed),
      corrupted: length(report.corrupted),
      recovered: length(report.recovered),
      cleared_readers: report.cleared_readers
    }

    if Enum.any?(measurements, fn {_event, amount} -> amount > 0 end), do: Recorder.event(:sweeps)
    Enum.each(measurements, fn {event, amount} -> Recorder.event(event, amount) end)

    metadata = %{
      namespace: namespace,
      source: source,
      report: Map.delete(report, :next_due)
    }

    by(source, :cleanup, :swept, measurements, metadata)
  end

  @doc false
  @spec cleanup_failed(String.t(), String.t()) :: :ok
  def cleanup_failed(namespace, reason) do
    Recorder.event(:failed)
    post(:cleanup, :failed, %{count: 1}, %{namespace: namespace, reason: reason})
  end

  @doc false
  @spec health_checked(String.t(), :monitor | :call, map()) :: :ok
  def health_checked(namespace, source, report) do
    count = fn severity -> Enum.count(report.findings, &(&1.severity == severity)) end

    measurements = %{
      duration: System.convert_time_unit(report.duration_us, :microsecond, :native),
      warnings: count.(:warning),
      critical: count.(:critical)
    }

    metadata = %{namespace: namespace, source: source, status: report.status, report: report}
    by(source, :health, :checked, measurements, metadata)
  end

  @doc false
  @spec config_changed(String.t(), map(), map()) :: :ok
  def config_changed(namespace, %{applied: applied, needs_restart: later}, changes) do
    measurements = %{applied: length(applied), needs_restart: length(later)}

    metadata = %{
      namespace: namespace,
      applied: applied,
      needs_restart: later,
      changes: changes
    }

    post(:config, :changed, measurements, metadata)
  end

  @doc false
  @spec marked(String.t()) :: :ok
  def marked(region), do: post(:cleanup, :marked, %{count: 1}, %{region: region})

  @doc false
  @spec expired(String.t(), pos_integer(), :idle | :unreferenced) :: :ok
  def expired(region, bytes, reason) do
    post(:cleanup, :expired, %{count: 1, bytes: bytes}, %{region: region, reason: reason})
  end

  @doc false
  @spec released(:session | :worker, String.t(), map(), :sweep | :call) :: :ok
  def released(kind, id, report, source) do
    measurements = %{
      regions: length(report.removed),
      failed: length(report.failed),
      bytes: report.bytes
    }

    by(source, :cleanup, :released, measurements, %{kind: kind, id: id})
  end

  @doc false
  @spec limit(:approached | :reached, map(), String.t()) :: :ok
  def limit(event, limit, recommendation) do
    metadata =
      limit |> Map.take([:limit, :scope, :unit]) |> Map.put(:recommendation, recommendation)

    post(:limit, event, Map.take(limit, [:used, :maximum]), metadata)
  end

  # A call emits in its caller, as the spans do.
  defp by(:call, family, event, measurements, metadata),
    do: emit(family, event, measurements, metadata)

  defp by(_ours, family, event, measurements, metadata),
    do: post(family, event, measurements, metadata)

  defp timed(operation, bytes, fun) do
    started = System.monotonic_time()

    try do
      fun.()
    catch
      kind, reason ->
        Recorder.raised(operation)
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      result ->
        %{duration: duration} = measurements = measured(since(started), result, bytes)
        Recorder.record(operation, duration, result, measurements[:bytes])
        result
    end
  end

  defp traced(operation, region, bytes, fun) do
    event = @prefix ++ [:region, operation]
    metadata = %{region: region}
    started = System.monotonic_time()
    start = %{system_time: System.system_time(), monotonic_time: started}
    :telemetry.execute(event ++ [:start], start, metadata)

    try do
      fun.()
    catch
      kind, reason ->
        Recorder.raised(operation)
        caught = %{kind: kind, reason: reason, stacktrace: __STACKTRACE__}
        :telemetry.execute(event ++ [:exception], since(started), Map.merge(metadata, caught))
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      result ->
        %{duration: duration} = measurements = measured(since(started), result, bytes)
        Recorder.record(operation, duration, result, measurements[:bytes])

        :telemetry.execute(
          event ++ [:stop],
          measurements,
          Map.put(metadata, :result, code(result))
        )

        result
    end
  end

  defp since(started) do
    now = System.monotonic_time()
    %{duration: now - started, monotonic_time: now}
  end

  defp measured(measurements, {:error, _}, _bytes), do: measurements

  defp measured(measurements, result, bytes) do
    case bytes.(result) do
      nil -> measurements
      count -> Map.put(measurements, :bytes, count)
    end
  end

  defp code({:error, %{code: code}}), do: code
  defp code(_result), do: :ok
end
