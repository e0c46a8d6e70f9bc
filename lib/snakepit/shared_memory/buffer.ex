defmodule Snakepit.SharedMemory.Buffer do
  @moduledoc """
  Memory that large values are read into again and again, from `Snakepit.SharedMemory.buffer/2`.

  A new binary of a hundred megabytes is new memory each time, and the first touch of each of its pages
  costs more than the copy. `Snakepit.SharedMemory.read_into/3` answers binaries in memory of the buffer,
  whose pages are there. Such a binary is like any other, and never changes: its memory is used again only
  when nothing points into it any more, and the garbage collection of whoever had it has seen that. While
  all `:copies` are in use, a read answers a binary of its own memory.

    * `:size` - the longest value that fits, in bytes
    * `:copies` - how many values there is room for, each made when it is first needed

  The memory is given back when neither the buffer nor a binary in it is left.
  """

  alias Snakepit.SharedMemory.{Error, Native, Options, Reading}

  @largest 1_073_741_824
  @schema [copies: {{:integer, 1, 64}, 4}]

  @type t :: %__MODULE__{size: pos_integer(), copies: pos_integer(), ref: reference()}

  @derive {Inspect, only: [:size, :copies]}
  @enforce_keys [:size, :copies, :ref]
  defstruct @enforce_keys

  @doc false
  @spec new(term(), term()) :: {:ok, t()} | {:error, Error.t()}
  def new(size, opts) when is_integer(size) and size in 1..@largest do
    with {:ok, %{copies: copies}} <- Options.validate(opts, @schema, :buffer),
         {:ok, ref} <- Error.wrap(Native.buffer(size, copies), :buffer, nil) do
      {:ok, %__MODULE__{size: size, copies: copies, ref: ref}}
    end
  end

  def new(size, _opts) do
    {:error,
     Error.new(
       :invalid_argument,
       "expected a size of 1 to #{@largest} bytes, got: #{shown(size)}",
       operation: :buffer,
       remedy: "pass the length of the longest value that is to be read into it"
     )}
  end

  @doc false
  @spec read(term(), term(), term()) :: {:ok, binary()} | {:error, Error.t()}
  def read(region, %__MODULE__{ref: ref} = buffer, opts) do
    Reading.read_by(region, opts, &into(&1, ref, buffer, &2))
  end

  def read(_region, other, _opts), do: {:error, not_a_buffer(other)}

  @doc false
  @spec copy(binary(), t(), atom(), String.t()) :: {:ok, binary()} | {:error, Error.t()}
  def copy(binary, %__MODULE__{ref: ref} = buffer, operation, id) do
    Error.wrap(Native.copy_into(ref, binary), operation, id)
  rescue
    ArgumentError -> {:error, %{not_a_buffer(buffer) | operation: operation}}
  end

  defp into(reader, ref, buffer, id) do
    with {:error, :dirty} <- Native.read_into(reader, ref) do
      Native.read_into_dirty(reader, ref)
    end
    |> Error.wrap(:read, id)
  rescue
    # One that was put together by hand, or has come from another VM.
    ArgumentError -> {:error, not_a_buffer(buffer)}
  end

  defp not_a_buffer(other) do
    Error.new(:invalid_argument, "not a buffer: #{shown(other)}",
      operation: :read,
      remedy: "pass what Snakepit.SharedMemory.buffer/2 has answered"
    )
  end

  defp shown(term), do: inspect(term, limit: 5, printable_limit: 60)
end
