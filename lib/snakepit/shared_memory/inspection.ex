defmodule Snakepit.SharedMemory.Inspection do
  @moduledoc false
  # What is known about regions: from shared memory itself, and from the registry.

  alias Snakepit.SharedMemory.{Access, Config, Error, Listing, Native, Options, Permissions}
  alias Snakepit.SharedMemory.{Reading, References, Region, Table, Target}

  @list [
          owner: {{:nilable, :pid}, nil},
          state: {{:in, [nil, :active, :sealed, :closed]}, nil},
          local: {{:nilable, :boolean}, nil},
          orphaned: {{:nilable, :boolean}, nil},
          session: {{:nilable, :string}, nil},
          worker: {{:nilable, :string}, nil},
          tag: {{:nilable, :string}, nil},
          min_size: {{:nilable, {:integer, 0, :infinity}}, nil},
          max_size: {{:nilable, {:integer, 0, :infinity}}, nil},
          older_than: {{:nilable, {:integer, 0, :infinity}}, nil}
        ] ++ Target.schema()

  @info [pages: {:boolean, false}] ++ Target.schema()

  @spec info(term(), term()) :: {:ok, map()} | {:error, Error.t()}
  def info(region, opts) do
    with {:ok, options} <- Options.validate(opts, @info, :get_region_info),
         {:ok, target} <- Target.resolve(region, options, :get_region_info),
         :ok <- still_valid(region, target),
         report = Native.inspect_segment(Target.native(target)),
         {:ok, report} <- Error.wrap(report, :get_region_info, target.id),
         {:ok, report} <- with_pages(report, options.pages, target) do
      {:ok, report |> Map.merge(value(region, target)) |> merge(region, target)}
    end
  end

  # Maps all of it for a moment, so only when asked.
  defp with_pages(report, false, _target), do: {:ok, report}

  defp with_pages(report, true, target) do
    pages = Native.inspect_pages(Target.native(target))

    with {:ok, pages} <- Error.wrap(pages, :get_region_info, target.id) do
      {:ok, Map.put(report, :pages, Map.update!(pages, :nodes, &Map.new/1))}
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
         listed = Listing.list(place),
         {:ok, {found, _corrupted}} <- Error.wrap(listed, :list_regions, nil) do
      regions = Enum.map(found, &merge(&1, &1.id, Target.new(&1.id, options, config)))
      wanted = Enum.reject(options, fn {_filter, value} -> value == nil end)
      now = DateTime.utc_now()
      matches? = fn region -> Enum.all?(wanted, &holds?(&1, region, now)) end
      {:ok, regions |> Enum.filter(matches?) |> Enum.sort_by(& &1.id)}
    end
  end

  # Filters that are given must all hold.
  defp holds?({:owner, pid}, region, _now), do: region.owner_pid == pid
  defp holds?({:state, state}, region, _now), do: region.state == state
  defp holds?({:orphaned, orphaned?}, region, _now), do: region.orphaned == orphaned?
  defp holds?({:local, local?}, region, _now), do: region.owner_pid != nil == local?
  defp holds?({:session, id}, region, _now), do: region.session == id
  defp holds?({:worker, id}, region, _now), do: region.worker == id
  defp holds?({:tag, tag}, region, _now), do: tag in region.tags
  defp holds?({:min_size, size}, region, _now), do: region.size >= size
  defp holds?({:max_size, size}, region, _now), do: region.size <= size

  defp holds?({:older_than, age}, region, now) do
    DateTime.diff(now, region.created_at, :millisecond) >= age
  end

  defp holds?({place, _value}, _region, _now) when place in [:namespace, :dir], do: true

  @foreign %{
    owner_pid: nil,
    metadata: %{},
    cleanup_policy: nil,
    marked: false,
    timeout: nil,
    access_mode: nil,
    permissions: nil,
    security_level: nil,
    session: nil,
    worker: nil,
    tags: []
  }

  # The owner, and the process that has it mapped, each hold one reference.
  defp merge(report, region, target) do
    known =
      case Table.record(target.key) do
        {:ok, record} ->
          %{
            owner_pid: record.owner_pid,
            metadata: record.metadata,
            reference_count: References.total(record),
            cleanup_policy: record.policy,
            marked: record.marked != nil,
            timeout: record.timeout,
            access_mode: record.access_mode,
            permissions: Permissions.to_map(record.permissions),
            # The only one that a region can be allocated with.
            security_level: :standard,
            session: record.session,
            worker: record.worker,
            tags: record.tags
          }

        :error ->
          Map.put(@foreign, :reference_count, Table.count(target.key))
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
