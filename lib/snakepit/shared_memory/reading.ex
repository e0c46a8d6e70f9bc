defmodule Snakepit.SharedMemory.Reading do
  @moduledoc false
  # Bytes out. Everything here runs in the caller; the first clauses are the hot path and do nothing
  # but the NIF call. Whatever is not a value on the spot goes the whole way.

  alias Snakepit.SharedMemory.{Access, Error, Native, Options, Recorder, Region, Registry}
  alias Snakepit.SharedMemory.{Table, Target, Telemetry}

  @read [
          offset: {{:nilable, {:integer, 0, :infinity}}, nil},
          length: {{:nilable, {:integer, 0, :infinity}}, nil},
          max_age: {{:nilable, {:integer, 0, 0xFFFF_FFFF_FFFF}}, nil}
        ] ++ Target.schema()

  @u64 0xFFFF_FFFF_FFFF_FFFF

  @doc "What `read/2` takes."
  @spec schema() :: Options.schema()
  def schema, do: @read

  @spec read(term(), term()) :: {:ok, binary()} | {:error, Error.t()}
  def read(%Region{reader: reader} = region, []), do: quick(reader, region)

  def read(id, []) when is_binary(id) do
    case Table.reader(id) do
      nil -> read_wholly(id, [])
      reader -> quick(reader, id)
    end
  end

  def read(region, opts), do: read_wholly(region, opts)

  defp quick(reader, region) do
    # The NIF library has counted what succeeded.
    case Native.read_quick(reader) do
      {:ok, _binary} = ok -> ok
      {:error, refused} when is_atom(refused) -> read_wholly(region, [])
      error -> Recorder.failed(:read, failure(error, region))
    end
  rescue
    # A mapping that was put together by hand: it is looked at no closer than that on this path.
    ArgumentError -> read_wholly(region, [])
  end

  defp failure(error, region) do
    {:error, error} = Error.wrap(error, :read, Target.id(region))
    error
  end

  defp read_wholly(region, opts) do
    if Telemetry.enabled?() do
      bytes = fn {:ok, binary} -> byte_size(binary) end
      Telemetry.span(:read, Target.id(region), bytes, fn -> do_read(region, opts) end)
    else
      # The NIF library has counted what succeeded.
      with {:error, error} <- do_read(region, opts), do: Recorder.failed(:read, error)
    end
  end

  defp do_read(%Region{reader: reader, id: id}, []), do: whole(reader, id)

  defp do_read(id, []) when is_binary(id) do
    case Table.reader(id) do
      nil -> read_with(id, [])
      reader -> whole(reader, id)
    end
  end

  defp do_read(region, opts), do: read_with(region, opts)

  defp read_with(region, opts) do
    with {:ok, options} <- Options.validate(opts, @read, :read),
         {:ok, target} <- Target.resolve(region, options, :read) do
      case region do
        %{"__snakepit_shm__" => _} -> copy(region, target, options)
        _ -> with_reader(region, target, :read, &read_from(&1, target.id, options))
      end
    end
  end

  @doc "A whole value, as `read/2` with `:max_age`, and by a way of the caller's: `fun` takes a reader and the id."
  @spec read_by(term(), term(), (Native.reader(), String.t() -> answer)) ::
          answer | {:error, Error.t()}
        when answer: {:ok, binary()} | {:error, Error.t()}
  def read_by(region, opts, fun) do
    bytes = fn {:ok, binary} -> byte_size(binary) end

    if Telemetry.enabled?() do
      Telemetry.span(:read, Target.id(region), bytes, fn -> do_read_by(region, opts, fun) end)
    else
      with {:error, error} <- do_read_by(region, opts, fun), do: Recorder.failed(:read, error)
    end
  end

  defp do_read_by(region, opts, fun) do
    schema = Keyword.take(@read, [:max_age]) ++ Target.schema()

    with {:ok, options} <- Options.validate(opts, schema, :read),
         {:ok, target} <- Target.resolve(region, options, :read) do
      case region do
        %{"__snakepit_shm__" => _} ->
          {:error, Target.not_a_region(region, :read)}

        _ ->
          with_reader(region, target, :read, fn reader ->
            with :ok <- fresh(reader, options.max_age, target.id), do: fun.(reader, target.id)
          end)
      end
    end
  end

  defp read_from(reader, id, %{max_age: max_age} = options) do
    with :ok <- fresh(reader, max_age, id) do
      case options do
        %{offset: nil, length: nil} -> whole(reader, id)
        _ -> part(reader, id, options.offset || 0, options.length)
      end
    end
  end

  defp fresh(_reader, nil, _id), do: :ok

  defp fresh(reader, max_age, id) do
    with {:ok, :ok} <- Error.wrap(Native.check_age(reader, max_age), :read, id), do: :ok
  end

  defp whole(reader, id) do
    case Native.read(reader) do
      {:ok, _binary} = ok -> ok
      {:error, :dirty} -> Error.wrap(Native.read_dirty(reader), :read, id)
      error -> Error.wrap(error, :read, id)
    end
  rescue
    ArgumentError -> {:error, Target.not_a_region(reader, :read)}
  end

  # Without a length: to the end of the value. What 64 bits cannot say is out of bounds anyway.
  defp part(reader, id, offset, length) do
    {offset, length} = {min(offset, @u64), length && min(length, @u64)}

    case Native.read_range(reader, offset, length) do
      {:error, :dirty} ->
        Error.wrap(Native.read_range_dirty(reader, offset, length), :read, id)

      answer ->
        Error.wrap(answer, :read, id)
    end
  end

  # A copy of the value that a handle names, or of a part of it.
  defp copy(handle, target, %{max_age: nil} = options) do
    Table.used(target.key)
    opened = Native.open_handle(handle, target.dir)

    with {:ok, binary} <- Error.wrap(opened, :read, target.id) do
      offset = options.offset || 0
      length = options.length || max(byte_size(binary) - offset, 0)

      if offset + length <= byte_size(binary) do
        Access.viewed(target, {:ok, binary})
        Recorder.copied(length)
        {:ok, :binary.copy(binary_part(binary, offset, length))}
      else
        {:error, out_of_bounds(target.id, offset, length, byte_size(binary))}
      end
    end
  end

  defp copy(_handle, target, _options) do
    {:error,
     Error.new(:invalid_option, "option :max_age does not go with a handle",
       region: target.id,
       operation: :read,
       remedy: "a handle names a value that never changes; leave :max_age out"
     )}
  end

  defp out_of_bounds(id, offset, length, limit) do
    Error.new(
      :out_of_bounds,
      "out of bounds: #{length} bytes at offset #{offset}, limit #{limit}",
      region: id,
      operation: :read,
      remedy: "keep offset + length within the value"
    )
  end

  # -- readers ---------------------------------------------------------------------------------

  @doc "The reader that serves reads by id of a region of this node, attached at the first use."
  @spec cached_reader(Target.t(), atom()) :: {:ok, Native.reader()} | {:error, Error.t()}
  def cached_reader(target, operation) do
    case Table.region(target.key) do
      {:ok, writer, nil} ->
        attach_for_all(target, writer, operation)

      {:ok, _writer, reader} ->
        {:ok, reader}

      :error ->
        {:error, Error.not_found(target.id, operation)}

      :not_started ->
        {:error, Error.not_started(operation)}
    end
  end

  # Many may come here at once, and fill the table of readers: the first one's serves them all.
  defp attach_for_all(target, writer, operation) do
    attached = Native.attach_beside(Target.native(target), writer)

    case Error.wrap(attached, operation, target.id) do
      {:ok, reader} ->
        Registry.put_reader(target.key, reader, operation)
        {:ok, instead_of(reader, Table.reader(target.key))}

      {:error, error} ->
        if first = Table.reader(target.key), do: {:ok, first}, else: {:error, error}
    end
  end

  defp instead_of(reader, first) when first in [nil, reader], do: reader

  defp instead_of(reader, first) do
    Native.close_reader(reader)
    first
  end

  @doc """
  Runs `fun` on a reader of the region: the held one, the cached one of a region of this node, or
  one that is attached for this call only.
  """
  @spec with_reader(term(), Target.t(), atom(), (Native.reader() -> answer)) ::
          answer | {:error, Error.t()}
        when answer: term()
  def with_reader(%Region{reader: reader}, _target, _operation, fun), do: fun.(reader)

  def with_reader(_id, target, operation, fun) do
    case cached_reader(target, operation) do
      {:ok, reader} -> fun.(reader)
      {:error, %{code: :not_found}} -> with_attached(target, operation, fun)
      {:error, error} -> {:error, error}
    end
  end

  @doc "Runs `fun` on a reader that is at hand, else on one attached for this call; keeps none."
  @spec peek(term(), Target.t(), atom(), (Native.reader() -> answer)) ::
          answer | {:error, Error.t()}
        when answer: term()
  def peek(%Region{reader: reader}, _target, _operation, fun), do: fun.(reader)

  def peek(_region, target, operation, fun) do
    case Table.region(target.key) do
      {:ok, _writer, reader} when reader != nil -> fun.(reader)
      _ -> with_attached(target, operation, fun)
    end
  end

  defp with_attached(target, operation, fun) do
    attached = Native.attach(Target.native(target))

    with {:ok, reader} <- Error.wrap(attached, operation, target.id) do
      try do
        fun.(reader)
      after
        Native.close_reader(reader)
      end
    end
  end
end
