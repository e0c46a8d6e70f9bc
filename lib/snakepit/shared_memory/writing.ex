defmodule Snakepit.SharedMemory.Writing do
  @moduledoc false
  # Bytes in, and the seal that ends it. Everything here runs in the caller; the first clauses are
  # the hot path and do nothing but the NIF call. Whatever is no plain write goes the whole way.

  alias Snakepit.SharedMemory.{Dtype, Error, History, Iodata, Native, Options, Recorder, Region}
  alias Snakepit.SharedMemory.{Table, Target, Telemetry}

  @described [
    dtype: {{:nilable, :dtype}, nil},
    shape: {{:nilable, :shape}, nil},
    format: {{:in, [nil, :raw, :numpy, :arrow_ipc]}, nil}
  ]

  @write [offset: {{:nilable, {:integer, 0, :infinity}}, nil}] ++ @described ++ Target.schema()

  @u64 0xFFFF_FFFF_FFFF_FFFF

  @doc "What `write/3` takes."
  @spec schema() :: Options.schema()
  def schema, do: @write

  @doc "The options that say what the bytes are."
  @spec description_schema() :: Options.schema()
  def description_schema, do: @described

  @spec write(term(), term(), term()) :: {:ok, non_neg_integer()} | {:error, Error.t()}
  def write(%Region{writer: writer} = region, data, []) when writer != nil do
    quick(writer, region, data)
  end

  def write(id, data, []) when is_binary(id) do
    case Table.writer(id) do
      nil -> write_wholly(id, data, [])
      writer -> quick(writer, id, data)
    end
  end

  def write(region, data, opts), do: write_wholly(region, data, opts)

  defp quick(writer, region, data) do
    # The NIF library has counted what succeeded.
    case Native.write_quick(writer, data) do
      {:ok, _version} = ok -> ok
      {:error, refused} when is_atom(refused) -> write_wholly(region, data, [])
      error -> Recorder.failed(:write, failure(error, region))
    end
  rescue
    ArgumentError -> write_wholly(region, data, [])
  end

  defp failure(error, region) do
    {:error, error} = Error.wrap(error, :write, Target.id(region))
    error
  end

  defp write_wholly(region, data, opts) do
    if Telemetry.enabled?() do
      bytes = fn {:ok, _version} -> IO.iodata_length(data) end
      Telemetry.span(:write, Target.id(region), bytes, fn -> do_write(region, data, opts) end)
    else
      # The NIF library has counted what succeeded.
      with {:error, error} <- do_write(region, data, opts), do: Recorder.failed(:write, error)
    end
  end

  defp do_write(%Region{writer: writer, id: id}, data, []) when writer != nil do
    put(writer, data, nil, id, :write)
  end

  defp do_write(id, data, []) when is_binary(id) do
    case Table.writer(id) do
      nil -> write_with(id, data, [])
      writer -> put(writer, data, nil, id, :write)
    end
  end

  defp do_write(region, data, opts), do: write_with(region, data, opts)

  defp write_with(region, data, opts) do
    with {:ok, options} <- Options.validate(opts, @write, :write),
         {:ok, target} <- Target.resolve(region, options, :write),
         {:ok, writer} <- writer(region, target, :write),
         {:ok, descriptor} <- descriptor(data, options, :write) do
      case options.offset do
        nil -> put(writer, data, descriptor, target.id, :write)
        offset -> patch(writer, offset, data, descriptor, target.id)
      end
    end
  end

  @doc "Writes a whole value: on this scheduler when it is small, on a dirty one when not."
  @spec put(Native.writer(), term(), Native.descriptor(), String.t(), atom()) ::
          {:ok, non_neg_integer()} | {:error, Error.t()}
  def put(writer, data, descriptor, id, operation) do
    case Native.write(writer, data, descriptor) do
      {:ok, _version} = ok ->
        ok

      {:error, :dirty} ->
        Error.wrap(Native.write_dirty(writer, data, descriptor), operation, id)

      error ->
        Error.wrap(error, operation, id)
    end
  rescue
    ArgumentError -> {:error, refused(writer, data, operation)}
  end

  # Which of them was not what it should be: a mapping that was put together by hand has no writer.
  defp refused(writer, data, operation) do
    if writer?(writer),
      do: not_iodata(data, operation),
      else: Target.not_a_region(writer, operation)
  end

  defp writer?(writer) do
    Native.accesses(writer)
    true
  rescue
    ArgumentError -> false
  end

  defp patch(_writer, _offset, _data, descriptor, _id) when descriptor != nil do
    {:error,
     Error.new(:invalid_option, "option :offset does not go with :dtype, :shape or :format",
       operation: :write,
       remedy: "a patch keeps the description of the value; write the whole value to change it"
     )}
  end

  defp patch(writer, offset, data, nil, id) do
    with {:ok, bytes} <- flatten(data) do
      offset = min(offset, @u64)

      case Native.write_at(writer, offset, bytes) do
        {:error, :dirty} ->
          Error.wrap(Native.write_at_dirty(writer, offset, bytes), :write, id)

        answer ->
          Error.wrap(answer, :write, id)
      end
    end
  rescue
    ArgumentError -> {:error, refused(writer, data, :write)}
  end

  defp flatten(data) do
    {:ok, IO.iodata_to_binary(data)}
  rescue
    ArgumentError -> {:error, not_iodata(data, :write)}
  end

  @doc "The error for data that is not iodata."
  @spec not_iodata(term(), atom()) :: Error.t()
  def not_iodata(data, operation) do
    shown = inspect(data, limit: 5, printable_limit: 60)

    Error.new(:invalid_argument, "not iodata: #{shown}",
      operation: operation,
      remedy: "pass a binary, or a list of binaries, bytes and such lists"
    )
  end

  @doc "The writer of a region, when this node or this mapping has it."
  @spec writer(term(), Target.t(), atom()) :: {:ok, Native.writer()} | {:error, Error.t()}
  def writer(%Region{writer: nil, id: id}, _target, operation) do
    {:error,
     Error.new(:permission_denied, "region #{id} is mapped read-only",
       region: id,
       operation: operation,
       remedy: "map it with access_mode: :read_write, or write from the process that owns it"
     )}
  end

  # What a write does with a made-up one it finds out itself, and at no cost to the others.
  def writer(%Region{writer: writer}, _target, :write), do: {:ok, writer}

  def writer(%Region{writer: writer} = region, _target, operation) do
    if writer?(writer),
      do: {:ok, writer},
      else: {:error, Target.not_a_region(region, operation)}
  end

  # Whatever has the handle's name by now, the value that it stands for is sealed.
  def writer(%{"__snakepit_shm__" => _}, target, operation) do
    {:error, sealed_by_handle(target.id, operation)}
  end

  def writer(_region, target, operation) do
    case Table.region(target.key) do
      {:ok, writer, _reader} -> {:ok, writer}
      :error -> {:error, not_ours(target.id, operation)}
      :not_started -> {:error, Error.not_started(operation)}
    end
  end

  @doc "The error for a handle where something that may change is needed."
  @spec sealed_by_handle(String.t(), atom()) :: Error.t()
  def sealed_by_handle(id, operation) do
    Error.new(:sealed, "a handle names a sealed value, which never changes: #{id}",
      region: id,
      operation: operation,
      remedy: "pass the id of a region that is not sealed"
    )
  end

  defp not_ours(id, operation) do
    Error.new(:not_found, "this node has no region #{id} to #{operation}",
      region: id,
      operation: operation,
      remedy: "allocate it here, or map another process's region with access_mode: :read_write"
    )
  end

  # -- what the bytes are ---------------------------------------------------------------------

  @doc "What the NIF is told about the bytes. A dtype without a shape is one-dimensional."
  @spec descriptor(term(), map(), atom()) :: {:ok, Native.descriptor()} | {:error, Error.t()}
  def descriptor(data, %{dtype: dtype, shape: shape, format: format}, operation) do
    case {format || if(dtype, do: :numpy, else: :raw), dtype, shape} do
      {:raw, nil, nil} -> {:ok, nil}
      {:arrow_ipc, nil, nil} -> {:ok, :arrow_ipc}
      {:numpy, dtype, shape} when dtype != nil -> array(data, dtype, shape, operation)
      _ -> {:error, half_described(operation)}
    end
  end

  defp half_described(operation) do
    Error.new(:invalid_option, "options :format, :dtype and :shape contradict one another",
      operation: operation,
      remedy: "give :dtype (and :shape) for an array, or format: :arrow_ipc alone, or nothing"
    )
  end

  defp array(data, dtype, shape, operation) do
    {:ok, dtype} = Dtype.to_string(dtype)

    with {:ok, shape} <- shape(data, dtype, shape, operation) do
      {:ok, {:numpy, dtype, shape}}
    end
  end

  defp shape(_data, _dtype, shape, _operation) when shape != nil, do: {:ok, shape}

  # Of so many bytes, which are not here.
  defp shape({:bytes, bytes}, dtype, nil, operation) when is_integer(bytes) do
    case Dtype.item_size(dtype) do
      {:ok, size} -> {:ok, [div(bytes, size)]}
      :error -> {:error, Options.invalid("option :dtype", "an element type", dtype, operation)}
    end
  end

  defp shape(data, dtype, nil, operation) do
    with {:ok, size} <- Dtype.item_size(dtype),
         {:ok, bytes} <- Iodata.length(data, operation) do
      {:ok, [div(bytes, size)]}
    else
      :error -> {:error, Options.invalid("option :dtype", "an element type", dtype, operation)}
      {:error, error} -> {:error, error}
    end
  end

  # -- seal -----------------------------------------------------------------------------------

  @spec seal(term(), term()) :: {:ok, non_neg_integer()} | {:error, Error.t()}
  def seal(region, opts) do
    Telemetry.span(:seal, Target.id(region), fn ->
      with {:ok, options} <- Options.validate(opts, Target.schema(), :seal),
           {:ok, target} <- Target.resolve(region, options, :seal),
           {:ok, writer} <- writer(region, target, :seal),
           {:ok, version} <- seal_writer(writer, target.id, :seal) do
        History.add(target.key, :seal, self(), %{version: version})
        {:ok, version}
      end
    end)
  end

  @doc "Seals; waits on a dirty scheduler while another process writes."
  @spec seal_writer(Native.writer(), String.t(), atom()) ::
          {:ok, non_neg_integer()} | {:error, Error.t()}
  def seal_writer(writer, id, operation) do
    case Native.seal(writer) do
      {:error, :dirty} -> Error.wrap(Native.seal_dirty(writer), operation, id)
      answer -> Error.wrap(answer, operation, id)
    end
  end
end
