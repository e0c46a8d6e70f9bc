defmodule Snakepit.SharedMemory.Inspection do
  @moduledoc false
  # What is known about regions: from shared memory itself, and from the registry.

  alias Snakepit.SharedMemory.{Access, Config, Error, Native, Options, Reading, Region}
  alias Snakepit.SharedMemory.{Table, Target}

  @list [
          owner: {{:nilable, :pid}, nil},
          state: {{:in, [nil, :active, :sealed, :closed]}, nil},
          local: {{:nilable, :boolean}, nil}
        ] ++ Target.schema()

  @spec info(term(), term()) :: {:ok, map()} | {:error, Error.t()}
  def info(region, opts) do
    with {:ok, options} <- Options.validate(opts, Target.schema(), :get_region_info),
         {:ok, target} <- Target.resolve(region, options, :get_region_info),
         :ok <- still_valid(region, target),
         report = Native.inspect_segment(Target.native(target)),
         {:ok, report} <- Error.wrap(report, :get_region_info, target.id) do
      {:ok, report |> Map.merge(value(region, target)) |> merge(region, target)}
    end
  end

  @of_value [:version, :bytes, :format, :dtype, :shape]
  @unknown %{format: nil, dtype: nil, shape: nil}

  # What the value is, from one look at it. Whoever cannot attach, for the region has just ended or its
  # table of readers is full, still learns the rest.
  defp value(region, target) do
    look = &Error.wrap(Native.reader_info(&1), :get_region_info, target.id)

    case Reading.peek(region, target, :get_region_info, look) do
      {:ok, info} -> Map.take(info, @of_value)
      {:error, _} -> @unknown
    end
  end

  # A handle stands for one value, not for whatever has its name now.
  defp still_valid(%{"__snakepit_shm__" => _} = handle, target) do
    opened = Native.open_handle(handle, target.dir)
    with {:ok, _} <- Error.wrap(opened, :get_region_info, target.id), do: :ok
  end

  defp still_valid(%Region{reader: reader, id: id}, _target) do
    with {:ok, _} <- Error.wrap(Native.reader_info(reader), :get_region_info, id), do: :ok
  end

  defp still_valid(_id, _target), do: :ok

  @spec list(term()) :: {:ok, [map()]} | {:error, Error.t()}
  def list(filter) do
    with {:ok, options} <- Options.validate(filter, @list, :list_regions),
         {:ok, config} <- Config.fetch(:list_regions),
         place = Target.new("", options, config),
         listed = Native.list(place.namespace, place.dir),
         {:ok, found} <- Error.wrap(listed, :list_regions, nil) do
      regions = Enum.map(found, &merge(&1, &1.id, Target.new(&1.id, options, config)))
      {:ok, regions |> Enum.filter(&matches?(&1, options)) |> Enum.sort_by(& &1.id)}
    end
  end

  defp matches?(region, options) do
    (options.owner == nil or region.owner_pid == options.owner) and
      (options.state == nil or region.state == options.state) and
      (options.local == nil or region.owner_pid != nil == options.local)
  end

  # The owner, and the process that has it mapped, each hold one reference.
  defp merge(report, region, target) do
    mappings = Table.mappings(target.key)

    known =
      case Table.record(target.key) do
        {:ok, record} ->
          %{
            owner_pid: record.owner_pid,
            metadata: record.metadata,
            reference_count: mappings + 1
          }

        :error ->
          %{owner_pid: nil, metadata: %{}, reference_count: mappings}
      end

    {dates, accesses} = region |> Access.of(target) |> Map.split([:last_read, :last_write])
    accessed = max(report.last_accessed, dates.last_read * 1_000_000)

    report
    |> Map.put(:last_accessed, DateTime.from_unix!(accessed, :microsecond))
    |> Map.update!(:created_at, &DateTime.from_unix!(&1, :microsecond))
    |> Map.merge(known)
    |> Map.merge(accesses)
  end
end
