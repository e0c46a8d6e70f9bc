defmodule Snakepit.SharedMemory.Telemetry do
  @moduledoc """
  The events that this library emits.

  They go through `:telemetry` when that application is loaded when ours starts; without it they
  are no-ops that cost one `:persistent_term` lookup. Each operation is a span: `:start`, then
  `:stop` or `:exception`.

  | Event (prefix `[:snakepit, :shared_memory]`) | Emitted by |
  |---|---|
  | `[:region, :allocate, _]` | `Snakepit.SharedMemory.allocate_region/2` |
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

  | Event | Measurements | Metadata |
  |---|---|---|
  | `:start` | `system_time`, `monotonic_time` (native units) | `region` (id or nil) |
  | `:stop` | `duration`, `monotonic_time` (native units), `bytes` where bytes moved | `region`, `result`: `:ok` or an error code |
  | `:exception` | `duration`, `monotonic_time` | `region`, `kind`, `reason`, `stacktrace` |
  | `[:cleanup, :owner_down]` | `regions`, `mappings` (counts) | `pid` |
  | `[:cleanup, :process_ended]` | `count` (1) | `namespace`, `os_pid`, `name` |
  | `[:cleanup, :swept]` | `removed`, `corrupted`, `recovered`, `cleared_readers` (counts) | `namespace`, `source`: `:janitor` or `:call`, `report` as from `cleanup_regions/1` |
  | `[:cleanup, :failed]` | `count` (1) | `namespace`, `reason` |
  | `[:health, :checked]` | `duration` (native units), `warnings`, `critical` (counts) | `namespace`, `source`: `:monitor` or `:call`, `status`, `report` as from `health_check/1` |
  """

  # Called only when it is loaded.
  @compile {:no_warn_undefined, :telemetry}

  @prefix [:snakepit, :shared_memory]
  # An atom: the cheapest key there is, for it is looked up by every read.
  @key :snakepit_shm_telemetry

  @cleanups ~w(owner_down process_ended swept failed)a
  @operations ~w(allocate map unmap deallocate write read seal binary share fetch subscribe with_writer)a

  @doc "Every event name that can be emitted."
  @spec events() :: [[atom()]]
  def events do
    spans =
      for operation <- @operations, step <- [:start, :stop, :exception] do
        @prefix ++ [:region, operation, step]
      end

    [@prefix ++ [:health, :checked]] ++ Enum.map(@cleanups, &(@prefix ++ [:cleanup, &1])) ++ spans
  end

  @doc false
  @spec setup() :: :ok
  def setup do
    loaded? = Code.ensure_loaded?(:telemetry) and function_exported?(:telemetry, :execute, 3)
    :persistent_term.put(@key, loaded?)
  end

  @doc "Whether events are emitted at all."
  @spec enabled?() :: boolean()
  def enabled?, do: :persistent_term.get(@key, false)

  # `bytes` is called for the result of an operation that succeeded, and only when somebody may
  # listen; nil when no bytes moved.
  @doc false
  @spec span(atom(), String.t() | nil, (result -> non_neg_integer() | nil), (() -> result)) ::
          result
        when result: term()
  def span(operation, region, bytes \\ fn _result -> nil end, fun)
      when operation in @operations do
    if enabled?(), do: traced(operation, region, bytes, fun), else: fun.()
  end

  @doc false
  @spec owner_down(pid(), non_neg_integer(), non_neg_integer()) :: :ok
  def owner_down(pid, regions, mappings) do
    cleanup(:owner_down, %{regions: regions, mappings: mappings}, %{pid: pid})
  end

  @doc false
  @spec process_ended(String.t(), non_neg_integer(), String.t()) :: :ok
  def process_ended(namespace, os_pid, name) do
    metadata = %{namespace: namespace, os_pid: os_pid, name: name}
    cleanup(:process_ended, %{count: 1}, metadata)
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

    metadata = %{
      namespace: namespace,
      source: source,
      report: Map.delete(report, :next_due)
    }

    cleanup(:swept, measurements, metadata)
  end

  @doc false
  @spec cleanup_failed(String.t(), String.t()) :: :ok
  def cleanup_failed(namespace, reason) do
    cleanup(:failed, %{count: 1}, %{namespace: namespace, reason: reason})
  end

  @doc false
  @spec health_checked(String.t(), :monitor | :call, map()) :: :ok
  def health_checked(namespace, source, report) do
    if enabled?() do
      count = fn severity -> Enum.count(report.findings, &(&1.severity == severity)) end

      measurements = %{
        duration: System.convert_time_unit(report.duration_us, :microsecond, :native),
        warnings: count.(:warning),
        critical: count.(:critical)
      }

      metadata = %{namespace: namespace, source: source, status: report.status, report: report}
      :telemetry.execute(@prefix ++ [:health, :checked], measurements, metadata)
    end

    :ok
  end

  defp cleanup(event, measurements, metadata) when event in @cleanups do
    if enabled?() do
      :telemetry.execute(@prefix ++ [:cleanup, event], measurements, metadata)
    end

    :ok
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
        caught = %{kind: kind, reason: reason, stacktrace: __STACKTRACE__}
        :telemetry.execute(event ++ [:exception], since(started), Map.merge(metadata, caught))
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      result ->
        measurements = measured(since(started), result, bytes)

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
