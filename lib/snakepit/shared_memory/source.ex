defmodule Snakepit.SharedMemory.Source do
  @moduledoc false
  # What `share/2` takes: iodata and tensors, which are there as a whole, and files and streams, whose
  # bytes go straight into the region piece by piece.
  #
  # A stream of unknown length goes into a region that is exchanged for one of twice the size as often as
  # it is full, so each byte is copied twice at most; with `:size` once.

  alias Snakepit.SharedMemory.{
    Config,
    Error,
    Iodata,
    Lifecycle,
    Memory,
    Native,
    Options,
    Registry
  }

  alias Snakepit.SharedMemory.{Target, Tensor, Writing}

  @stream [size: {{:nilable, {:integer, 1, 0x4000_0000}}, nil}]

  # Of a stream that does not say how long it is.
  @first_size 1024 * 1024

  @type filled :: {:ok, {Target.t(), Native.writer()}} | {:error, Error.t()}

  @doc "The options that only some of them take."
  @spec schema() :: Options.schema()
  def schema, do: @stream

  @doc "Puts what is to be shared into a region of its own as its only value. Left behind is a whole one or none."
  @spec put(term(), map()) :: filled()
  def put({kind, _} = source, options) when kind in [:file, :stream] do
    with :ok <- sized(kind, options), do: put_pieces(source, options)
  end

  def put(data, options) do
    with :ok <- sized(:whole, options) do
      if Tensor.tensor?(data), do: put_tensor(data, options), else: put_iodata(data, options)
    end
  end

  defp sized(:stream, %{name: name, size: nil}) when name != nil do
    {:error,
     Error.new(:invalid_option, "option :name of a stream needs :size",
       operation: :share,
       remedy: "pass the most bytes that the stream can have as :size, or no :name"
     )}
  end

  defp sized(kind, %{size: size}) when kind != :stream and size != nil do
    {:error,
     Error.new(:invalid_option, "option :size is for streams: #{kind} data has a size of its own",
       operation: :share,
       remedy: "leave :size out"
     )}
  end

  defp sized(_kind, _options), do: :ok

  # -- what is there as a whole ---------------------------------------------------------------

  defp put_tensor(_tensor, %{dtype: dtype, shape: shape, format: format})
       when dtype != nil or shape != nil or format not in [nil, :numpy] do
    {:error,
     Error.new(:invalid_option, "options :dtype, :shape and :format do not go with a tensor",
       operation: :share,
       remedy: "leave them out: a tensor has a type and a shape of its own"
     )}
  end

  defp put_tensor(tensor, options) do
    with {:ok, {binary, dtype, shape}} <- Tensor.bytes(tensor) do
      put_iodata(binary, %{options | dtype: dtype, shape: shape, format: :numpy})
    end
  end

  defp put_iodata(data, options) do
    with {:ok, descriptor} <- Writing.descriptor(data, options, :share),
         {:ok, bytes} <- Iodata.length(data, :share),
         {:ok, target, writer} <- create(bytes, options) do
      keep(target, writer, Writing.put(writer, data, descriptor, target.id, :share))
    end
  end

  # -- what comes in pieces -------------------------------------------------------------------

  defp put_pieces({:file, path}, options) do
    with {:ok, path, bytes} <- file(path),
         {:ok, descriptor} <- Writing.descriptor({:bytes, bytes}, options, :share),
         {:ok, target, writer} <- create(bytes, options) do
      filled = Error.wrap(Native.fill_file(writer, path, bytes), :share, path)
      keep(target, writer, publish(filled, target, writer, descriptor))
    end
  end

  defp put_pieces({:stream, stream}, options) do
    with :ok <- enumerable(stream),
         {:ok, target, writer} <- create(options.size || @first_size, options) do
      fill(%{target: target, writer: writer, at: 0, options: options}, stream)
    end
  end

  defp file(path) do
    path = IO.chardata_to_string(path)

    case File.stat(path) do
      {:ok, %{type: :regular, size: bytes}} -> {:ok, path, bytes}
      {:ok, %{type: type}} -> {:error, no_file(path, "it is of type #{type}")}
      {:error, reason} -> {:error, no_file(path, :file.format_error(reason))}
    end
  rescue
    _ -> {:error, Options.invalid("{:file, path}", "the path of a file", path, :share)}
  end

  defp no_file(path, why) do
    Error.new(:io, "cannot share the file #{inspect(path)}: #{why}",
      operation: :share,
      remedy: "pass the path of a regular file that this user may read"
    )
  end

  defp enumerable(stream) do
    if is_function(stream, 2) or Enumerable.impl_for(stream) != nil do
      :ok
    else
      {:error, Options.invalid("{:stream, stream}", "an enumerable of iodata", stream, :share)}
    end
  end

  # Whatever the stream does, no region of half of it is left.
  defp fill(state, stream) do
    key = {__MODULE__, make_ref()}
    Process.put(key, state.target)

    try do
      Enum.reduce_while(stream, {:ok, state}, fn piece, {:ok, state} ->
        case add(state, piece) do
          {:ok, state} ->
            Process.put(key, state.target)
            {:cont, {:ok, state}}

          {:error, error} ->
            {:halt, {:error, error}}
        end
      end)
    catch
      kind, reason ->
        discard(Process.get(key))
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      {:ok, state} -> ended(state)
      {:error, error} -> dropped(Process.get(key), error)
    after
      Process.delete(key)
    end
  end

  defp ended(%{target: target, writer: writer, at: bytes, options: options}) do
    published =
      with {:ok, descriptor} <- Writing.descriptor({:bytes, bytes}, options, :share) do
        publish({:ok, bytes}, target, writer, descriptor)
      end

    keep(target, writer, published)
  end

  defp add(%{writer: writer, at: at} = state, piece) do
    answer =
      with {:error, :dirty} <- Native.fill(writer, at, piece) do
        Native.fill_dirty(writer, at, piece)
      end

    case {Error.wrap(answer, :share, state.target.id), state.options.size} do
      # The region is as large as its pages are.
      {{:ok, at}, size} when is_integer(size) and at > size ->
        {:error, longer(size)}

      {{:ok, at}, _size} ->
        {:ok, %{state | at: at}}

      {{:error, %{code: :out_of_bounds}}, nil} ->
        with {:ok, more} <- Iodata.length(piece, :share),
             {:ok, state} <- grow(state, more),
             do: add(state, piece)

      {{:error, %{code: :out_of_bounds}}, size} ->
        {:error, longer(size)}

      {{:error, error}, _size} ->
        {:error, error}
    end
  rescue
    ArgumentError -> {:error, Writing.not_iodata(piece, :share)}
  end

  defp longer(size) do
    Error.new(:out_of_bounds, "the stream has more than #{size} bytes, its :size",
      operation: :share,
      remedy: "pass the most bytes that it can have as :size, or none"
    )
  end

  # Twice the size, as far as that may be; what is needed in any case.
  defp grow(%{at: at, target: target, writer: smaller, options: options} = state, more) do
    with {:ok, config} <- Config.fetch(:share),
         needed = at + more,
         wanted = max(needed, min(2 * at, config.max_region_size)),
         {:ok, larger_target, larger} <- create(wanted, options) do
      copied = Error.wrap(Native.fill_from(larger, smaller, at), :share, target.id)
      discard(target)

      case copied do
        {:ok, _bytes} -> {:ok, %{state | target: larger_target, writer: larger}}
        {:error, error} -> dropped(larger_target, error)
      end
    end
  end

  # -- both -----------------------------------------------------------------------------------

  # Written once and read by few: one slot, nobody waits for a change.
  @fixed %{slots: 1, notify: false, max_readers: nil}

  defp create(0, _options) do
    {:error,
     Error.new(:invalid_size, "nothing to share: there are 0 bytes",
       operation: :share,
       remedy: "say by other means that there is nothing; a file of /proc is to be read first"
     )}
  end

  # Its time begins when it has its value, which may be long in coming.
  defp create(bytes, options) do
    case Native.round_up_capacity(bytes) do
      {:ok, size} ->
        settings = options |> Map.merge(@fixed) |> Memory.filled_at_once(size)
        Lifecycle.create(size, Map.put(settings, :filled_by, self()), :share)

      {:error, failure} ->
        {:error, Error.from_native(failure, :share)}
    end
  end

  defp publish({:error, error}, _target, _writer, _descriptor), do: {:error, error}

  defp publish({:ok, bytes}, target, writer, descriptor) do
    Error.wrap(Native.fill_publish(writer, bytes, descriptor), :share, target.id)
  end

  # A region that could not be filled is of no use to anybody.
  defp keep(target, writer, {:ok, _version}), do: {:ok, {target, writer}}
  defp keep(target, _writer, {:error, error}), do: dropped(target, error)

  defp dropped(target, error) do
    discard(target)
    {:error, error}
  end

  defp discard(target), do: Registry.deallocate(target, :share)
end
