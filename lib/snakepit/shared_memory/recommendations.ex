defmodule Snakepit.SharedMemory.Recommendations do
  @moduledoc """
  What the statistics say should be changed.

  `Snakepit.SharedMemory.recommendations/0` answers a list, the most severe first, of maps with

    * `:severity` - `:critical`, `:warning` or `:info`
    * `:topic` - one of those below
    * `:message` - what was found; `:remedy` - what to do about it
    * `:evidence` - the figures that it rests on

  | Topic | When |
  |---|---|
  | `:limits` | regions or bytes are at 80 % of a limit; critical at 95 % |
  | `:errors` | 5 % of at least 100 calls of an operation failed, answers such as `:empty` aside |
  | `:contention` | 1 % of at least 100 reads ended in a version conflict |
  | `:cleanup` | a sweep failed; critical when corrupted regions were seen |
  | `:allocation` | of at least 20 allocations one in a hundred took 10 ms or more |
  | `:fragmentation` | regions hold 1 MiB or more, and three quarters of it, that no value fills |
  | `:unused` | a region of five minutes or more was written, but never read by this VM, and nobody is attached |
  | `:lookup` | a region was read 10,000 times by its id, values of 4 KiB or less |
  """

  alias Snakepit.SharedMemory.{Config, Error, Native, Stats, Target}

  @near 0.8
  @critical 0.95
  @calls 100
  @error_rate 0.05
  @conflict_rate 0.01
  @allocations 20
  @slow_us 10_000
  @waste_bytes 1024 * 1024
  @waste_share 0.75
  @idle_s 300
  @by_id 10_000
  @small 4096
  # No region is smaller, so none of these can be made so.
  @smallest 4096

  # Answers that are part of ordinary use: nobody has written yet, or it is gone, or nothing came.
  @ordinary [:empty, :not_found, :closed, :timeout, :not_sealed, :already_exists, :stale]

  # So many unread regions, the largest, are looked at for readers in other OS processes, and so many ids are shown.
  @looked_at 100
  @shown 5

  @severities [:critical, :warning, :info]

  @type t :: %{
          severity: :critical | :warning | :info,
          topic: atom(),
          message: String.t(),
          evidence: map(),
          remedy: String.t()
        }

  @type facts :: %{
          stats: Stats.t(),
          limits: %{max_regions: pos_integer(), max_total_memory: pos_integer()},
          regions: [map()]
        }

  @doc false
  @spec now() :: {:ok, [t()]} | {:error, Error.t()}
  def now do
    with {:ok, config} <- Config.fetch(:recommendations),
         {:ok, stats} <- Stats.snapshot(:recommendations) do
      limits = Map.take(config, [:max_regions, :max_total_memory])
      {:ok, from(%{stats: stats, limits: limits, regions: look(Stats.regions())})}
    end
  end

  @doc false
  # Readers in other OS processes are in shared memory only, so the few in question are looked at.
  @spec look([map()]) :: [map()]
  def look(regions) do
    {unread, others} = Enum.split_with(regions, &unread?/1)
    {largest, rest} = unread |> Enum.sort_by(& &1.bytes, :desc) |> Enum.split(@looked_at)
    Enum.map(largest, &look_at/1) ++ rest ++ others
  end

  defp unread?(%{reads: reads, views: views, writes: writes}) do
    reads == 0 and views == 0 and writes > 0
  end

  defp look_at(region) do
    case Native.inspect_segment(Target.native(region.target)) do
      {:ok, report} ->
        age_s = div(System.os_time(:microsecond) - report.created_at, 1_000_000)
        Map.merge(region, %{age_s: age_s, reader_count: report.reader_count})

      {:error, _gone} ->
        region
    end
  end

  @doc false
  # Pure.
  @spec from(facts()) :: [t()]
  def from(facts) do
    rules = [&limits/1, &errors/1, &contention/1, &cleanup/1, &allocation/1] ++ region_rules()

    rules
    |> Enum.flat_map(& &1.(facts))
    |> Enum.sort_by(&Enum.find_index(@severities, fn severity -> severity == &1.severity end))
  end

  defp region_rules, do: [&fragmentation/1, &unused/1, &lookup/1]

  # -- of the whole ---------------------------------------------------------------------------

  defp limits(%{stats: stats, limits: limits}) do
    near(:max_regions, stats.active_regions, limits.max_regions, "regions") ++
      near(:max_total_memory, stats.total_memory_allocated, limits.max_total_memory, "bytes")
  end

  defp near(limit, used, allowed, what) when used >= @near * allowed do
    [
      %{
        severity: if(used >= @critical * allowed, do: :critical, else: :warning),
        topic: :limits,
        message: "#{used} of #{allowed} #{what} that #{inspect(limit)} allows are in use",
        evidence: %{limit: limit, used: used, allowed: allowed},
        remedy: "deallocate regions that are not needed, or raise #{inspect(limit)}"
      }
    ]
  end

  defp near(_limit, _used, _allowed, _what), do: []

  defp errors(%{stats: stats}) do
    for {operation, %{count: count, errors: errors}} <- Enum.sort(stats.operations),
        failures = Map.drop(errors, [:version_conflict | @ordinary]),
        failed = failures |> Map.values() |> Enum.sum(),
        calls = count + failed,
        calls >= @calls and failed >= @error_rate * calls do
      {code, _most} = Enum.max_by(failures, &elem(&1, 1))

      %{
        severity: :warning,
        topic: :errors,
        message:
          "#{percent(failed, calls)} of #{calls} calls of #{operation} failed, most with #{code}",
        evidence: %{operation: operation, calls: calls, errors: failures},
        remedy: "look at the message and the remedy of an error with code #{inspect(code)}"
      }
    end
  end

  defp contention(%{stats: %{operations: %{read: %{count: count, errors: errors}}}}) do
    conflicts = Map.get(errors, :version_conflict, 0)
    reads = count + conflicts

    if reads >= @calls and conflicts >= @conflict_rate * reads do
      [
        %{
          severity: :warning,
          topic: :contention,
          message: "#{percent(conflicts, reads)} of #{reads} reads were overtaken by the writer",
          evidence: %{reads: reads, version_conflicts: conflicts},
          remedy: "allocate with more :slots, write less often, or split the value over regions"
        }
      ]
    else
      []
    end
  end

  defp cleanup(%{stats: %{cleanup: cleanup}}) do
    failed =
      for n <- [cleanup.failed], n > 0 do
        %{
          severity: :warning,
          topic: :cleanup,
          message: "#{n} sweeps for what dead processes left have failed",
          evidence: %{failed: n},
          remedy: "see the warnings in the log; the directory must be there and be writable"
        }
      end

    corrupted =
      for n <- [cleanup.corrupted], n > 0 do
        %{
          severity: :critical,
          topic: :cleanup,
          message: "sweeps came upon corrupted regions #{n} times",
          evidence: %{corrupted: n},
          remedy:
            "see cleanup_regions(dry_run: true) for which, remove them with corrupted: true, and " <>
              "find out who writes into the directory"
        }
      end

    failed ++ corrupted
  end

  defp allocation(%{stats: %{allocation_times: %{samples: samples, p99: p99} = times}})
       when samples >= @allocations and p99 >= @slow_us do
    [
      %{
        severity: :warning,
        topic: :allocation,
        message: "one allocation in a hundred takes #{round(p99 / 1000)} ms or more",
        evidence: Map.take(times, [:samples, :p50, :p99, :max]),
        remedy:
          "fresh pages are what costs: keep regions and write into them again, allocate smaller " <>
            "ones, or use reserve: :lazy where the memory may be taken later"
      }
    ]
  end

  defp allocation(_facts), do: []

  # -- of regions -----------------------------------------------------------------------------

  # Only what has been written by us: how long another's value is was not counted.
  defp fragmentation(%{regions: regions}) do
    loose =
      Enum.filter(regions, fn %{size: size, value_bytes: value, writes: writes} ->
        writes > 0 and size > @smallest and size - value >= @waste_share * size
      end)

    wasted = loose |> Enum.map(&((&1.size - &1.value_bytes) * &1.slots)) |> Enum.sum()

    if wasted >= @waste_bytes do
      [
        %{
          severity: :info,
          topic: :fragmentation,
          message: "#{length(loose)} regions hold #{wasted} bytes that their values do not fill",
          evidence: %{
            regions: length(loose),
            unused_bytes: wasted,
            ids: ids(loose, &((&1.size - &1.value_bytes) * &1.slots))
          },
          remedy: "allocate regions of the size of their values, or with fewer :slots"
        }
      ]
    else
      []
    end
  end

  defp unused(%{regions: regions}) do
    unread =
      Enum.filter(regions, fn region ->
        unread?(region) and Map.get(region, :reader_count) == 0 and
          Map.get(region, :age_s, 0) >= @idle_s
      end)

    if unread == [] do
      []
    else
      bytes = unread |> Enum.map(& &1.bytes) |> Enum.sum()

      [
        %{
          severity: :info,
          topic: :unused,
          message:
            "#{length(unread)} regions of #{bytes} bytes were written, but this VM has never read " <>
              "them, and nobody is attached",
          evidence: %{regions: length(unread), bytes: bytes, ids: ids(unread, & &1.bytes)},
          remedy: "deallocate them if other OS processes have done with them"
        }
      ]
    end
  end

  defp lookup(%{regions: regions}) do
    for %{reads_by_id: by_id} = region <- regions,
        by_id >= @by_id,
        average = div(region.bytes_read, region.reads),
        average <= @small do
      %{
        severity: :info,
        topic: :lookup,
        message: "region #{region.id} was read #{by_id} times by its id, #{average} bytes each",
        evidence: %{id: region.id, reads_by_id: by_id, reads: region.reads, average: average},
        remedy: "hold it mapped with map_region/2: a read of a mapping looks nothing up"
      }
    end
  end

  defp ids(regions, weight) do
    regions |> Enum.sort_by(weight, :desc) |> Enum.take(@shown) |> Enum.map(& &1.id)
  end

  defp percent(part, whole), do: "#{Float.round(part / whole * 100, 1)} %"
end
