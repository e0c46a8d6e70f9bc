defmodule Snakepit.SharedMemory.Exchange do
  @moduledoc false
  # Values that change hands: put into a sealed region once, then passed on by a handle.

  alias Snakepit.SharedMemory.{
    Access,
    Error,
    Lifecycle,
    Memory,
    Native,
    Options,
    Reading,
    Recorder,
    Region
  }

  alias Snakepit.SharedMemory.{Registry, Table, Target, Telemetry, Writing}

  @share Writing.description_schema() ++
           Keyword.drop(Lifecycle.allocate_schema(), [:slots, :notify, :max_readers])

  # Written once and read by few: one slot, nobody waits for a change.
  @fixed %{slots: 1, notify: false, max_readers: nil}

  @spec share(term(), term()) :: {:ok, map()} | {:error, Error.t()}
  def share(data, opts) do
    bytes = fn {:ok, handle} -> handle["bytes"] end

    Telemetry.span(:share, nil, bytes, fn ->
      with {:ok, options} <- Options.validate(opts, @share, :share),
           {:ok, descriptor} <- Writing.descriptor(data, options, :share),
           {:ok, size} <- capacity(data),
           {:ok, target, writer} <-
             Lifecycle.create(size, settings(options, size), :share) do
        fill(target, writer, data, descriptor)
      end
    end)
  end

  defp settings(options, size) do
    options |> Map.merge(@fixed) |> Memory.filled_at_once(size)
  end

  defp capacity(data) do
    bytes = IO.iodata_length(data)

    case Native.round_up_capacity(bytes) do
      {:ok, size} -> {:ok, size}
      {:error, failure} -> {:error, Error.from_native(failure, :share)}
    end
  rescue
    ArgumentError -> {:error, Writing.not_iodata(data, :share)}
  end

  # A region that could not be filled is of no use to anybody.
  defp fill(target, writer, data, descriptor) do
    with {:ok, _version} <- Writing.put(writer, data, descriptor, target.id, :share),
         {:ok, _version} <- Writing.seal_writer(writer, target.id, :share),
         {:ok, handle} <- Error.wrap(Native.writer_handle(writer), :share, target.id) do
      {:ok, handle}
    else
      {:error, error} ->
        Registry.deallocate(target, :share)
        {:error, error}
    end
  end

  @spec fetch(term(), term()) :: {:ok, binary()} | {:error, Error.t()}
  def fetch(handle, opts) do
    Telemetry.span(:fetch, Target.id(handle), &bytes/1, fn ->
      with {:ok, options} <- Options.validate(opts, Target.schema(), :fetch),
           :ok <- check_map(handle),
           {:ok, target} <- Target.resolve(handle, options, :fetch) do
        Access.viewed(target, open(handle, target, :fetch))
      end
    end)
  end

  defp bytes({:ok, binary}), do: byte_size(binary)

  # Anything but a handle is an invalid handle here, not some other kind of region.
  defp check_map(%{"__snakepit_shm__" => _}), do: :ok

  defp check_map(other) do
    shown = inspect(other, limit: 5, printable_limit: 60)

    {:error,
     Error.new(:invalid_handle, "invalid handle: #{shown}",
       operation: :fetch,
       remedy: "pass the map that share/2 returned, or its JSON decoded with string keys"
     )}
  end

  defp open(handle, target, operation) do
    Table.used(target.key)
    Error.wrap(Native.open_handle(handle, target.dir), operation, target.id)
  end

  @spec handle(term(), term()) :: {:ok, map()} | {:error, Error.t()}
  def handle(region, opts) do
    with {:ok, options} <- Options.validate(opts, Target.schema(), :handle),
         {:ok, target} <- Target.resolve(region, options, :handle) do
      handle_of(region, target)
    end
  end

  # A handle is its own, as long as it still names something.
  defp handle_of(%{"__snakepit_shm__" => _} = handle, target) do
    with {:ok, _binary} <- open(handle, target, :handle), do: {:ok, handle}
  end

  defp handle_of(%Region{reader: reader, id: id}, _target) do
    Error.wrap(Native.reader_handle(reader), :handle, id)
  end

  defp handle_of(region, target) do
    case Table.region(target.key) do
      {:ok, writer, _reader} ->
        Error.wrap(Native.writer_handle(writer), :handle, target.id)

      _ ->
        Reading.with_reader(region, target, :handle, fn reader ->
          Error.wrap(Native.reader_handle(reader), :handle, target.id)
        end)
    end
  end

  @binary [pin: {:boolean, false}] ++ Target.schema()

  @spec binary(term(), term()) :: {:ok, binary()} | {:error, Error.t()}
  def binary(region, opts) do
    Telemetry.span(:binary, Target.id(region), &bytes/1, fn ->
      with {:ok, options} <- Options.validate(opts, @binary, :binary),
           {:ok, target} <- Target.resolve(region, options, :binary) do
        if options.pin,
          do: pinned(region, target),
          else: Access.viewed(target, view(region, target))
      end
    end)
  end

  # Held by the binary: it outlives the reader it was made with.
  defp pinned(region, target) do
    Table.used(target.key)

    pinned =
      Reading.with_reader(region, target, :binary, fn reader ->
        Error.wrap(Native.reader_pin(reader), :binary, target.id)
      end)

    case pinned do
      {:ok, {binary, true}} ->
        Access.viewed(target, {:ok, binary})

      {:ok, {binary, false}} ->
        Recorder.copied(byte_size(binary))
        {:ok, binary}

      {:error, error} ->
        {:error, error}
    end
  end

  defp view(%{"__snakepit_shm__" => _} = handle, target), do: open(handle, target, :binary)

  defp view(%Region{reader: reader, id: id}, _target) do
    Error.wrap(Native.reader_binary(reader), :binary, id)
  end

  defp view(region, target) do
    Table.used(target.key)

    case Table.region(target.key) do
      {:ok, writer, _reader} ->
        Error.wrap(Native.writer_binary(writer), :binary, target.id)

      _ ->
        Reading.with_reader(region, target, :binary, fn reader ->
          Error.wrap(Native.reader_binary(reader), :binary, target.id)
        end)
    end
  end
end
