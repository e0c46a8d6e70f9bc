defmodule Snakepit.SharedMemory.Platform.Linux do
  @moduledoc """
  Linux: files on a memory file system (R1.1), `O_TMPFILE`, open-file-description locks, pidfd.

  See `Snakepit.SharedMemory.Platform` for what the callbacks are for.
  """

  @behaviour Snakepit.SharedMemory.Platform

  alias Snakepit.SharedMemory.{Error, Native, Options, Target}

  @memory_file_systems ~w(tmpfs ramfs hugetlbfs)

  @allocate [
    namespace: {:string, nil},
    dir: {:string, nil},
    slots: {{:nilable, {:integer, 1, 64}}, nil},
    permissions: {{:integer, 0, 0o777}, 0o600}
  ]

  @map [access_mode: {{:in, [:read_only, :read_write]}, :read_only}]

  defmodule Handle do
    @moduledoc false
    @enforce_keys [:writer, :segment]
    defstruct @enforce_keys
  end

  @impl true
  def allocate(region_id, size, options) when is_binary(region_id) do
    with {:ok, options} <- Options.validate(options, @allocate, :allocate_region),
         :ok <- placed(options, :namespace),
         :ok <- placed(options, :dir),
         :ok <- text(region_id),
         :ok <- whole(size),
         segment = segment(region_id, size, options),
         {:ok, writer} <- Error.wrap(Native.create(segment), :allocate_region, region_id) do
      {:ok, %Handle{writer: writer, segment: segment}}
    end
  end

  def allocate(region_id, _size, _options) do
    {:error, Options.invalid("region id", "a string", region_id, :allocate_region)}
  end

  defp segment(region_id, size, options) do
    place = Map.take(options, [:namespace, :dir])
    target = struct!(Target, Map.merge(place, %{id: region_id, key: region_id}))
    settings = options |> Map.take([:slots, :permissions]) |> Map.put(:size, size)
    Target.native(target, settings)
  end

  # It goes into nobody's directory by default: what lies there is looked after by the registry.
  defp placed(options, key) do
    case Map.fetch!(options, key) do
      nil ->
        {:error, Options.invalid("option #{inspect(key)}", "a string", nil, :allocate_region)}

      _ ->
        :ok
    end
  end

  defp text(id) do
    if String.valid?(id),
      do: :ok,
      else: {:error, Options.invalid("region id", "a string", id, :allocate_region)}
  end

  defp whole(size) when is_integer(size) and size >= 0 and size <= 0xFFFF_FFFF, do: :ok

  defp whole(size) do
    {:error, Options.invalid("size", "a number of bytes up to 1 GiB", size, :allocate_region)}
  end

  @impl true
  def map(%Handle{segment: segment}, options) do
    with {:ok, options} <- Options.validate(options, @map, :map_region),
         :ok <- for_reading(options.access_mode, segment) do
      Error.wrap(Native.attach(segment), :map_region, segment.name)
    end
  end

  def map(other, _options), do: {:error, no_handle(other, :map_region)}

  defp for_reading(:read_only, _segment), do: :ok

  defp for_reading(:read_write, segment) do
    {:error,
     Error.new(:unsupported, "a bare segment is written through its handle alone",
       region: segment.name,
       operation: :map_region,
       remedy:
         "map it :read_only; Snakepit.SharedMemory.map_region/2 has mappings to write through"
     )}
  end

  @impl true
  def unmap(mapping, size) when is_reference(mapping) and is_integer(size) do
    with {:ok, :ok} <- Error.wrap(Native.close_reader(mapping), :unmap_region, nil), do: :ok
  rescue
    # A reference to something else.
    ArgumentError -> {:error, no_mapping(mapping)}
  end

  def unmap(mapping, _size), do: {:error, no_mapping(mapping)}

  @impl true
  def deallocate(%Handle{writer: writer, segment: segment}) do
    answer = Error.wrap(Native.discard(writer), :deallocate_region, segment.name)
    with {:ok, :ok} <- answer, do: :ok
  end

  def deallocate(other), do: {:error, no_handle(other, :deallocate_region)}

  @impl true
  def get_info(%Handle{segment: segment}) do
    report = Native.inspect_segment(segment)

    with {:ok, info} <- Error.wrap(report, :get_region_info, segment.name),
         {:ok, file} <- file(segment, info) do
      {:ok, Map.merge(info, file)}
    end
  end

  def get_info(other), do: {:error, no_handle(other, :get_region_info)}

  # The segment may be removed between the two looks.
  defp file(%{dir: dir, name: id}, %{platform_handle: %{file: name}}) do
    case File.stat(Path.join(dir, name), time: :posix) do
      {:ok, stat} ->
        {:ok,
         %{
           name: name,
           actual_size: stat.size,
           access_time: DateTime.from_unix!(stat.atime),
           modify_time: DateTime.from_unix!(stat.mtime),
           permissions: Bitwise.band(stat.mode, 0o7777)
         }}

      {:error, :enoent} ->
        {:error, Error.not_found(id, :get_region_info)}

      {:error, reason} ->
        message = "the file of #{id} cannot be looked at: #{:file.format_error(reason)}"
        remedy = "check the directory and its file system"
        {:error, Error.new(:io, message, region: id, operation: :get_region_info, remedy: remedy)}
    end
  end

  defp no_handle(other, operation) do
    invalid("not a platform handle", other, "pass what allocate/3 returned", operation)
  end

  defp no_mapping(other) do
    invalid("not a mapping", other, "pass what map/2 returned, and a size", :unmap_region)
  end

  defp invalid(what, value, remedy, operation) do
    shown = inspect(value, limit: 5, printable_limit: 60)
    Error.new(:invalid_argument, "#{what}: #{shown}", operation: operation, remedy: remedy)
  end

  # -- capabilities ---------------------------------------------------------------------------

  @doc """
  What this machine can do in `dir`. Each is tried or read anew; nothing is left in `dir`.

    * `:platform` - `:linux`; `:dir` - as given
    * `:memory_file_system` - whether `dir` lies in memory; `:file_system` - its type (`"tmpfs"`)
      and `:mount_point`, nil when `/proc` is not there
    * `:space_total`, `:space_available` - bytes of that file system
    * `:huge_pages` - the mount's `huge=` option, nil without one; `:shmem_enabled` - the kernel's setting
      for all memory file systems, of which `"deny"` and `"force"` overrule the mount
    * `:huge_page_size` - bytes, 0 where the kernel has none; `:huge_pages_possible` - whether a region
      that asks for huge pages gets them now, from the mount or from the kernel on request (Linux 6.1)
    * `:unnamed_files` - `O_TMPFILE`; `:file_locks` - open-file-description locks;
      `:process_descriptors` - pidfd
    * `:numa_nodes` - a list of numbers
    * `:locked_memory_limit` - bytes, `:unlimited`, or nil when it cannot be read
    * `:page_size` - bytes

      iex> {:ok, found} = Snakepit.SharedMemory.Platform.Linux.capabilities("/dev/shm")
      iex> {found.memory_file_system, found.file_system}
      {true, "tmpfs"}
      iex> {:error, error} = Snakepit.SharedMemory.Platform.Linux.capabilities("/no/such/directory")
      iex> error.operation
      :capabilities
  """
  @impl true
  def capabilities(dir) do
    with :ok <- path(dir),
         {:ok, found} <- Error.wrap(Native.capabilities(dir), :capabilities, nil) do
      {type, mount_point} = file_system(dir)

      {:ok,
       Map.merge(found, %{
         platform: :linux,
         dir: dir,
         file_system: type,
         mount_point: mount_point,
         memory_file_system: type in @memory_file_systems,
         numa_nodes: numa_nodes(),
         locked_memory_limit: locked_memory_limit()
       })}
    end
  end

  defp path(dir) do
    if is_binary(dir) and String.valid?(dir),
      do: :ok,
      else: {:error, Options.invalid("directory", "a path", dir, :capabilities)}
  end

  # proc_pid_mountinfo(5): field 5 is the mount point; after " - " come type, source and options.
  # The longest mount point above `dir` holds it; of equal ones the last, which hides the others.
  defp file_system(dir) do
    with {:ok, mounts} <- File.read("/proc/self/mountinfo") do
      parts = Path.split(real_path(dir))

      mounts
      |> String.split("\n", trim: true)
      |> Enum.map(&mount/1)
      |> Enum.filter(fn {_type, point} -> List.starts_with?(parts, Path.split(point)) end)
      |> Enum.reverse()
      |> Enum.max_by(fn {_type, point} -> length(Path.split(point)) end, fn -> {nil, nil} end)
    else
      {:error, _reason} -> {nil, nil}
    end
  end

  defp mount(line) do
    [left, right] = String.split(line, " - ", parts: 2)
    [type | _] = String.split(right, " ")
    {type, left |> String.split(" ") |> Enum.at(4) |> unescape()}
  end

  # Blanks and the like are written as three octal digits.
  defp unescape(path) do
    Regex.replace(~r/\\([0-7]{3})/, path, fn _all, octal -> <<String.to_integer(octal, 8)>> end)
  end

  # As the kernel sees it: links followed, as far as there are any.
  defp real_path(dir), do: follow(Path.split(Path.expand(dir)), "/", 40)

  defp follow(["/" | rest], _at, links), do: follow(rest, "/", links)
  defp follow([], at, _links), do: at

  defp follow([part | rest], at, links) do
    path = Path.join(at, part)

    case links > 0 and File.read_link(path) do
      {:ok, target} ->
        follow(Path.split(Path.expand(target, at)) ++ rest, "/", links - 1)

      _ ->
        follow(rest, path, links)
    end
  end

  # "0", "0-3", "0,2-3". Without the file there is one node.
  defp numa_nodes do
    case File.read("/sys/devices/system/node/online") do
      {:ok, nodes} ->
        nodes |> String.trim() |> String.split(",", trim: true) |> Enum.flat_map(&nodes/1)

      {:error, _reason} ->
        [0]
    end
  end

  defp nodes(range) do
    case range |> String.split("-") |> Enum.map(&String.to_integer/1) do
      [node] -> [node]
      [first, last] -> Enum.to_list(first..last)
    end
  end

  defp locked_memory_limit do
    with {:ok, limits} <- File.read("/proc/self/limits"),
         [_, soft] <- Regex.run(~r/^Max locked memory +(\d+|unlimited)/m, limits) do
      if soft == "unlimited", do: :unlimited, else: String.to_integer(soft)
    else
      _ -> nil
    end
  end
end
