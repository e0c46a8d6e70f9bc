defmodule Snakepit.SharedMemory.Stats do
  @moduledoc """
  What this VM has done with shared memory since it started, or since
  `Snakepit.SharedMemory.reset_stats/0`.

    * `:total_allocations`, `:total_deallocations` - regions that came and went, however they went
    * `:active_regions` - regions that this VM has now; `:total_memory_allocated` - bytes that they hold,
      counting every slot
    * `:allocation_times`, `:mapping_times`, `:cleanup_times` - how long `allocate_region/2`,
      `map_region/2` and `cleanup_regions/1` took. Sweeps in the background are not timed
    * `:error_counts` - errors by code, of all public functions that take a region or concern all of them;
      `:exception` is what raised
    * `:operations` - for each operation a summary as above, and with it `:bytes`, which moved or were
      handed out, and `:errors`, a map of codes. Those that only look or that switch something, from
      `get_region_info` to `reconfigure`, are counted and not timed
    * `:bytes_read` - copied out; `:bytes_written` - copied in, by `write/3` and `share/2`
    * `:fragmentation` - of the regions there are now: `:reserved_bytes` (what they hold),
      `:capacity_bytes` (the largest values they could have), `:value_bytes` (the values that this VM has
      written last) and `:unused`, the share of the capacity that no value fills, from 0.0 to 1.0
    * `:pool` - what is kept of regions that ended, see `t:Snakepit.SharedMemory.Pool.stats/0`
    * `:cleanup` - counts: `:sweeps` that found something, what they `:removed`, `:recovered`, saw
      `:corrupted`, `:cleared_readers`; sweeps that `:failed`; owners in this VM and other OS processes that
      ended (`:owner_down`, `:process_ended`)
    * `:events_dropped` - events of this library's own processes that were not emitted, for a handler hung
    * `:since`, `:last_updated` - `DateTime`

  A summary of times is a map of `:count` (calls that succeeded), `:samples` (those that were
  timed), and in microseconds `:p50`, `:p90`, `:p99`, `:p999` and `:max`, which are nil without a
  sample. They come from buckets 1/16 of their value wide: percentiles are off by 3.2 % at most,
  `:max` is at most 6.3 % too high.

  ## What it costs

  Everything is counted exactly. Of reads and writes one in 128 of each scheduler is timed, and only
  their work in the NIF library: two looks at the clock would take as long as a small read. A
  `write` counts those that `share/2` makes. All other operations are timed whole, every time. The
  configuration key `:performance_monitoring` switches it all off.
  """

  alias Snakepit.SharedMemory.{Access, Config, Error, Histogram, Pool, Recorder, Table}

  @type t :: %__MODULE__{
          total_allocations: non_neg_integer(),
          total_deallocations: non_neg_integer(),
          active_regions: non_neg_integer(),
          total_memory_allocated: non_neg_integer(),
          allocation_times: Histogram.summary(),
          mapping_times: Histogram.summary(),
          cleanup_times: Histogram.summary(),
          error_counts: %{atom() => pos_integer()},
          operations: %{atom() => map()},
          bytes_read: non_neg_integer(),
          bytes_written: non_neg_integer(),
          fragmentation: map(),
          pool: Pool.stats(),
          cleanup: %{atom() => non_neg_integer()},
          events_dropped: non_neg_integer(),
          since: DateTime.t(),
          last_updated: DateTime.t()
        }

  @enforce_keys [
    :total_allocations,
    :total_deallocations,
    :active_regions,
    :total_memory_allocated,
    :allocation_times,
    :mapping_times,
    :cleanup_times,
    :error_counts,
    :operations,
    :bytes_read,
    :bytes_written,
    :fragmentation,
    :pool,
    :cleanup,
    :events_dropped,
    :since,
    :last_updated
  ]
  defstruct @enforce_keys

  @doc false
  @spec snapshot(atom()) :: {:ok, t()} | {:error, Error.t()}
  def snapshot(operation) do
    with {:ok, recorded} <- recorded(operation),
         {:ok, pool} <- Pool.stats(operation) do
      {:ok, of(recorded, regions(), pool, DateTime.utc_now())}
    end
  end

  @doc false
  @spec reset() :: {:ok, t()} | {:error, Error.t()}
  def reset do
    with {:ok, stats} <- snapshot(:reset_stats) do
      Recorder.reset()
      {:ok, stats}
    end
  end

  defp recorded(operation) do
    with {:ok, config} <- Config.fetch(operation) do
      case {Recorder.recorded(), config} do
        # The application has stopped since we asked.
        {nil, %{performance_monitoring: true}} -> {:error, Error.not_started(operation)}
        {nil, _config} -> {:error, switched_off(operation)}
        {recorded, _config} -> {:ok, recorded}
      end
    end
  end

  defp switched_off(operation) do
    Error.new(:disabled, "statistics are switched off by the configuration",
      operation: operation,
      remedy: "set performance_monitoring: true under config :snakepit, :shared_memory"
    )
  end

  # What is known of a region that is not ours to write any more: a region that is on its way out.
  @none %{
    reads: 0,
    reads_by_id: 0,
    views: 0,
    writes: 0,
    bytes_read: 0,
    bytes_written: 0,
    value_bytes: 0
  }

  @doc false
  # The regions of this node with what has been done with them, for the sums and for `Recommendations`.
  @spec regions() :: [map()]
  def regions do
    for %{state: :live} = record <- Table.records() do
      record
      |> Map.take([:target, :size, :bytes, :slots])
      |> Map.put(:id, record.target.id)
      |> Map.merge(done_with(record.target.key))
    end
  rescue
    # The application stops, and its tables with it.
    ArgumentError -> []
  end

  defp done_with(key) do
    case Table.region(key) do
      {:ok, writer, _reader} -> writer |> Access.counted() |> Map.take(Map.keys(@none))
      _gone -> @none
    end
  end

  @doc false
  # Pure: from what was counted and what there is.
  @spec of(Recorder.recorded(), [map()], Pool.stats(), DateTime.t()) :: t()
  def of(%{operations: operations, events: events, since: since}, regions, pool, now) do
    %__MODULE__{
      total_allocations: events.allocated,
      total_deallocations: events.deallocated,
      active_regions: length(regions),
      total_memory_allocated: sum(regions, :bytes),
      allocation_times: times(operations.allocate),
      mapping_times: times(operations.map),
      cleanup_times: times(operations.cleanup),
      error_counts: error_counts(operations),
      operations: Map.new(operations, fn {name, calls} -> {name, operation(calls)} end),
      bytes_read: operations.read.bytes,
      bytes_written: operations.write.bytes,
      fragmentation: fragmentation(regions),
      pool: pool,
      cleanup: Map.drop(events, [:allocated, :deallocated, :events_dropped]),
      events_dropped: events.events_dropped,
      since: since,
      last_updated: now
    }
  end

  defp operation(calls), do: calls |> times() |> Map.merge(Map.take(calls, [:bytes, :errors]))

  defp times(calls), do: Histogram.summary(calls.times, calls.count)

  defp error_counts(operations) do
    Enum.reduce(operations, %{}, fn {_name, %{errors: errors}}, sums ->
      Map.merge(sums, errors, fn _code, a, b -> a + b end)
    end)
  end

  defp fragmentation(regions) do
    {capacity, values} = {sum(regions, :size), sum(regions, :value_bytes)}

    %{
      reserved_bytes: sum(regions, :bytes),
      capacity_bytes: capacity,
      value_bytes: values,
      unused: if(capacity == 0, do: 0.0, else: 1 - values / capacity)
    }
  end

  defp sum(regions, key), do: regions |> Enum.map(&Map.fetch!(&1, key)) |> Enum.sum()
end
