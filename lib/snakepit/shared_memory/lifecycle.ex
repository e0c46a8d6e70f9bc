defmodule Snakepit.SharedMemory.Lifecycle do
  @moduledoc false
  # Regions come, are mapped and unmapped, and go. The public functions and their documentation
  # are in `Snakepit.SharedMemory`.

  alias Snakepit.SharedMemory.{Config, Error, Jobs, Memory, Native, Options, Permissions, Pool}
  alias Snakepit.SharedMemory.{Reading, Region}
  alias Snakepit.SharedMemory.{Registry, SecurityController, Sessions, Table, Target, Telemetry}
  alias Snakepit.SharedMemory.Table.Record

  @settings [
    slots: {{:nilable, {:integer, 1, 64}}, nil},
    max_readers: {{:nilable, {:integer, 1, 16_384}}, nil},
    integrity: {{:in, [:none, :crc32c]}, :none},
    notify: {:boolean, true},
    timestamps: {{:in, [:off, :coarse, :precise]}, :coarse},
    reserve: {{:in, [:eager, :lazy]}, :eager},
    permissions: {:permissions, 0o600},
    schema_id: {{:nilable, {:integer, 0, 0xFFFF_FFFF_FFFF_FFFF}}, nil}
  ]

  # What belongs to the region as this VM knows it, not to its segment.
  @bookkeeping [
    owner: {{:nilable, :pid}, nil},
    metadata: {:map, %{}},
    access_mode: {{:in, [nil, :read_only, :read_write]}, nil},
    cleanup_policy: {{:in, [:automatic, :manual, :reference_counted]}, :automatic},
    timeout: {:timeout, :default},
    session: {{:nilable, :string}, nil},
    worker: {{:nilable, :string}, nil},
    tags: {:strings, []}
  ]

  @allocate [
              name: {{:nilable, :string}, nil},
              security_level: {{:in, [:standard, :high, :maximum]}, :standard}
            ] ++ @bookkeeping ++ @settings ++ Memory.create_schema() ++ Target.schema()

  @map [access_mode: {{:in, [nil, :read_only, :read_write]}, nil}] ++
         Memory.attach_schema() ++ Target.schema()

  @doc "The options that an adoption takes, too."
  @spec bookkeeping_schema() :: Options.schema()
  def bookkeeping_schema, do: @bookkeeping ++ Target.schema()

  @doc "The options of a creation, for `share/2` to add to its own."
  @spec allocate_schema() :: Options.schema()
  def allocate_schema, do: @allocate

  @spec allocate(term(), term()) :: {:ok, String.t()} | {:error, Error.t()}
  def allocate(size, opts) do
    Telemetry.span(:allocate, nil, fn ->
      with {:ok, options} <- Options.validate(opts, @allocate, :allocate_region),
           {:ok, target, _writer} <- create(size, options, :allocate_region) do
        {:ok, target.id}
      end
    end)
  end

  @doc "Creates a region from checked options; the writer is for the caller to use at once."
  @spec create(term(), map(), atom()) ::
          {:ok, Target.t(), Native.writer()} | {:error, Error.t()}
  def create(size, options, operation) do
    with {:ok, config} <- Config.fetch(operation),
         :ok <- SecurityController.check(options.security_level, options.name, operation),
         :ok <- check_size(size, config, operation) do
      target = Target.new(options.name || generate_id(), options, config)
      slots = options.slots || default_slots(size)

      {:ok, mode} = Permissions.mode(options.permissions)

      settings =
        options
        |> Map.take(Keyword.keys(@settings))
        |> Map.merge(%{size: size, slots: slots, permissions: mode})
        |> Map.merge(Memory.to_create(options, config))
        |> Map.merge(%{pooled: Pool.serves?(config, target), tenant: options.session})

      record = %{record(target, {size, slots}, options, config) | permissions: mode}
      Sessions.note(options, config)

      with {:ok, writer} <- Registry.allocate(record, settings, operation) do
        {:ok, target, writer}
      end
    end
  end

  @doc "What the registry is to know of a region of this VM."
  @spec record(Target.t(), {pos_integer(), pos_integer()}, map(), Config.t()) :: Record.t()
  def record(target, {size, slots}, options, config) do
    %Record{
      target: target,
      size: size,
      bytes: size * slots,
      slots: slots,
      owner_pid: options.owner || self(),
      metadata: options.metadata,
      state: :live,
      access_mode: options.access_mode,
      timeout: timeout(options.timeout, config),
      by_default: options.timeout == :default,
      session: options.session,
      worker: options.worker,
      policy: options.cleanup_policy,
      tags: options.tags,
      filled_by: options[:filled_by]
    }
  end

  defp timeout(:default, config), do: config.default_timeout
  defp timeout(timeout, _config), do: timeout

  @doc "Whether a region of that size may be created or adopted."
  @spec check_size(term(), Config.t(), atom()) :: :ok | {:error, Error.t()}
  def check_size(size, config, operation) when is_integer(size) do
    case size >= 0 and size <= 0xFFFF_FFFF and Native.round_up_capacity(size) do
      {:ok, ^size} when size <= config.max_region_size -> :ok
      {:ok, ^size} -> {:error, too_large(size, config, operation)}
      {:ok, nearest} -> {:error, invalid_size(size, nearest, operation)}
      {:error, failure} -> {:error, Error.from_native(failure, operation)}
      false -> {:error, invalid_size(size, if(size < 0, do: 4096, else: 0x4000_0000), operation)}
    end
  end

  def check_size(size, _config, operation) do
    {:error, Options.invalid("size", "a number of bytes", size, operation)}
  end

  defp invalid_size(size, nearest, operation) do
    Error.new(
      :invalid_size,
      "invalid segment size: #{size} bytes (must be 4096..1073741824 and a multiple of the " <>
        "page size; nearest valid: #{nearest})",
      operation: operation,
      remedy: "ask for #{nearest} bytes"
    )
  end

  defp too_large(size, config, operation) do
    Error.new(
      :resource_exhausted,
      "limit :max_region_size reached: needed #{size} bytes, allowed #{config.max_region_size}",
      operation: operation,
      remedy: "split the data over several regions, or raise :max_region_size"
    )
  end

  # DESIGN: with two or more slots a complete value always exists; large ones cost memory.
  defp default_slots(size) when size <= 1024 * 1024, do: 4
  defp default_slots(_size), do: 2

  defp generate_id do
    random = Base.encode16(:crypto.strong_rand_bytes(8), case: :lower)
    "shm_#{System.system_time(:microsecond)}_#{random}"
  end

  # -- mapping --------------------------------------------------------------------------------

  @spec map(term(), term()) :: {:ok, Region.t()} | {:error, Error.t()}
  def map(region, opts) do
    Telemetry.span(:map, Target.id(region), fn ->
      with {:ok, options} <- Options.validate(opts, @map, :map_region),
           {:ok, target} <- Target.resolve(region, options, :map_region),
           memory = Memory.to_attach(options),
           {:ok, mapping} <- open(target, options.access_mode, memory, :map_region),
           :ok <- same_incarnation(mapping, region, :map_region) do
        hold(target, mapping)
      end
    end)
  end

  # Of a region of this node there is one mapping for all, and the writer is at hand. That of
  # another process's region is attached anew: the name may stand for a new segment by now.
  defp open(target, access_mode, memory, operation) do
    # Before its writer and reader: should they be of a later region, the registry says no.
    record = Table.record(target.key)

    case Table.region(target.key) do
      {:ok, writer, _reader} ->
        with {:ok, record} <- known(record, target, operation),
             {:ok, reader} <- local_reader(target, memory, operation) do
          writer = writable(access_mode || record.access_mode, writer)
          {:ok, %{reader: reader, writer: writer, own_writer: nil, token: record.token}}
        end

      :error ->
        attach(target, access_mode, memory, operation)

      :not_started ->
        {:error, Error.not_started(operation)}
    end
  end

  defp local_reader(target, memory, operation) when memory == %{} do
    with {:ok, base} <- Reading.cached_reader(target, operation) do
      Error.wrap(Native.share_reader(base), operation, target.id)
    end
  end

  # What is asked of the memory is asked of a mapping of its own.
  defp local_reader(target, memory, operation) do
    Error.wrap(Native.attach(Target.native(target, memory)), operation, target.id)
  end

  defp known({:ok, record}, _target, _operation), do: {:ok, record}
  defp known(:error, target, operation), do: {:error, Error.not_found(target.id, operation)}

  defp writable(:read_only, _writer), do: nil
  defp writable(_access_mode, writer), do: writer

  defp attach(target, access_mode, memory, operation) do
    segment = Target.native(target, memory)

    # The claim first: when it is refused, no reader stays counted.
    with {:ok, writer} <- attach_writer(access_mode, segment, target, operation) do
      case Error.wrap(Native.attach(segment), operation, target.id) do
        {:ok, reader} ->
          {:ok, %{reader: reader, writer: writer, own_writer: writer, token: nil}}

        {:error, error} ->
          if writer, do: Native.release(writer)
          {:error, error}
      end
    end
  end

  defp attach_writer(:read_write, segment, target, operation) do
    Error.wrap(Native.attach_writer(segment), operation, target.id)
  end

  defp attach_writer(_access_mode, _segment, _target, _operation), do: {:ok, nil}

  # A handle names one value of one incarnation; a name may have been used again since.
  defp same_incarnation(mapping, %{"__snakepit_shm__" => _} = handle, operation) do
    answer = Error.wrap(Native.reader_handle(mapping.reader), operation, handle["name"])

    with {:error, error} <- check_handle(answer, handle, operation) do
      give_back(mapping)
      {:error, error}
    end
  end

  defp same_incarnation(_mapping, _region, _operation), do: :ok

  @doc "Whether a region, whose own handle was asked for, is the one that `handle` names."
  @spec check_handle({:ok, map()} | {:error, Error.t()}, map(), atom()) ::
          :ok | {:error, Error.t()}
  def check_handle({:ok, its_own}, handle, operation) do
    if its_own == plainly(handle), do: :ok, else: {:error, stale_handle(handle, operation)}
  end

  # What the name stands for by now: a region that is not sealed never had a handle.
  def check_handle({:error, %{code: :not_sealed}}, handle, operation),
    do: {:error, stale_handle(handle, operation)}

  def check_handle({:error, error}, _handle, _operation), do: {:error, error}

  # A segment does not know what its elements mean, and tells no order but Fortran's.
  defp plainly(%{"order" => "C"} = handle), do: plainly(Map.delete(handle, "order"))
  defp plainly(handle), do: Map.delete(handle, "element")

  defp stale_handle(handle, operation) do
    Error.new(:invalid_handle, "invalid handle: the region is not the one that it was made for",
      region: handle["name"],
      operation: operation,
      remedy: "ask for a new handle; the region was removed and created again"
    )
  end

  defp hold(target, mapping) do
    %{reader: reader} = mapping

    with {:ok, info} <- Error.wrap(Native.reader_info(reader), :map_region, target.id),
         {:ok, ref} <- Registry.map(target, mapping, :map_region) do
      {:ok,
       %Region{
         id: target.id,
         size: info.capacity,
         namespace: target.namespace,
         dir: target.dir,
         access_mode: if(mapping.writer, do: :read_write, else: :read_only),
         mapped_by: self(),
         ref: ref,
         reader: reader,
         writer: mapping.writer
       }}
    else
      :gone ->
        give_back(mapping)
        {:error, Error.not_found(target.id, :map_region)}

      {:error, error} ->
        give_back(mapping)
        {:error, error}
    end
  end

  defp give_back(%{reader: reader, own_writer: own_writer}) do
    Jobs.unmap({nil, nil, nil, reader, own_writer, nil})
  end

  @spec unmap(term(), term()) :: {:ok, String.t()} | {:error, Error.t()}
  def unmap(region, opts) do
    Telemetry.span(:unmap, Target.id(region), fn ->
      with {:ok, options} <- Options.validate(opts, Target.schema(), :unmap_region),
           {:ok, target} <- Target.resolve(region, options, :unmap_region) do
        case Registry.unmap(mapping_of(region, target), :unmap_region) do
          {:ok, mapping} -> unmapped(Jobs.unmap(mapping), target)
          :not_mapped -> {:error, not_mapped(target.id)}
          {:error, error} -> {:error, error}
        end
      end
    end)
  end

  defp unmapped({:ok, :ok}, target), do: {:ok, target.id}
  defp unmapped(answer, target), do: Error.wrap(answer, :unmap_region, target.id)

  defp mapping_of(%Region{ref: ref}, _target), do: ref
  defp mapping_of(_region, target), do: target.key

  defp not_mapped(id) do
    Error.new(:not_mapped, "this process does not hold #{id} mapped",
      region: id,
      operation: :unmap_region,
      remedy: "unmap a region once, from the process that mapped it"
    )
  end

  # -- the end --------------------------------------------------------------------------------

  @spec deallocate(term(), term()) :: {:ok, String.t()} | {:error, Error.t()}
  def deallocate(region, opts) do
    Telemetry.span(:deallocate, Target.id(region), fn ->
      with {:ok, options} <- Options.validate(opts, Target.schema(), :deallocate_region),
           {:ok, target} <- Target.resolve(region, options, :deallocate_region),
           :ok <- remove(target, region) do
        {:ok, target.id}
      end
    end)
  end

  defp remove(target, region) do
    case {Table.region(target.key), region} do
      {{:ok, writer, _reader}, %{"__snakepit_shm__" => _} = handle} ->
        answer = Error.wrap(Native.writer_handle(writer), :deallocate_region, target.id)

        with :ok <- check_handle(answer, handle, :deallocate_region),
             do: Registry.deallocate(target, :deallocate_region)

      {{:ok, _writer, _reader}, _region} ->
        Registry.deallocate(target, :deallocate_region)

      {:error, %{"__snakepit_shm__" => _} = handle} ->
        with {:ok, config} <- Config.fetch(:deallocate_region) do
          pooled = Pool.serves?(config, target)
          removed(Native.remove_handle(handle, target.dir, pooled), target)
        end

      {:error, _region} ->
        removed(Native.remove(Target.native(target)), target)

      {:not_started, _region} ->
        {:error, Error.not_started(:deallocate_region)}
    end
  end

  defp removed({:ok, :ok}, _target), do: :ok

  defp removed({:error, failure}, target),
    do: {:error, Error.from_native(failure, :deallocate_region, target.id)}
end
