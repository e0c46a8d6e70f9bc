defmodule Snakepit.SharedMemory.Exchange do
  @moduledoc false
  # Values that change hands: put into a sealed region once, then passed on by a handle, and looked at in
  # place. What becomes of them at the other end is in `Fetching`.

  alias Snakepit.SharedMemory.{Access, Error, Lifecycle, Native, Options, Reading, Recorder}
  alias Snakepit.SharedMemory.{Region, Registry, Source, Table, Target, Telemetry, Writing}

  @share [ttl: {{:nilable, {:integer, 1, 3_155_760_000_000}}, nil}] ++
           Writing.description_schema() ++
           Source.schema() ++
           Keyword.drop(Lifecycle.allocate_schema(), [:slots, :notify, :max_readers])

  @spec share(term(), term()) :: {:ok, map()} | {:error, Error.t()}
  def share(data, opts) do
    bytes = fn {:ok, handle} -> handle["bytes"] end

    Telemetry.span(:share, nil, bytes, fn ->
      with {:ok, options} <- Options.validate(opts, @share, :share),
           {:ok, options} <- timed(options),
           {:ok, {target, writer}} <- Source.put(data, options) do
        seal(target, writer)
      end
    end)
  end

  # Under the name that others give the time in which a result is to be fetched.
  defp timed(%{ttl: nil} = options), do: {:ok, options}
  defp timed(%{ttl: ttl, timeout: :default} = options), do: {:ok, %{options | timeout: ttl}}

  defp timed(_options) do
    {:error,
     Error.new(:invalid_option, "options :ttl and :timeout say the same",
       operation: :share,
       remedy: "leave one of them out"
     )}
  end

  defp seal(target, writer) do
    with {:ok, _version} <- Writing.seal_writer(writer, target.id, :share),
         {:ok, handle} <- Error.wrap(Native.writer_handle(writer), :share, target.id) do
      {:ok, handle}
    else
      {:error, error} ->
        Registry.deallocate(target, :share)
        {:error, error}
    end
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

  defp bytes({:ok, binary}), do: byte_size(binary)

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
