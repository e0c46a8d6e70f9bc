defmodule Snakepit.SharedMemory.Access do
  @moduledoc false
  # How often this VM has read and written a region, as the NIF library has counted it.

  alias Snakepit.SharedMemory.{Error, Native, Recorder, Region, Table, Target}

  @type t :: %{
          access_count: non_neg_integer() | nil,
          reads: non_neg_integer() | nil,
          reads_by_id: non_neg_integer() | nil,
          views: non_neg_integer() | nil,
          writes: non_neg_integer() | nil,
          bytes_read: non_neg_integer() | nil,
          bytes_written: non_neg_integer() | nil
        }

  @unknown %{
    access_count: nil,
    reads: nil,
    reads_by_id: nil,
    views: nil,
    writes: nil,
    bytes_read: nil,
    bytes_written: nil
  }

  @none %{calls: 0, bytes: 0, last: 0}

  @doc """
  Of a region of this node, or of a mapping of another's; with `:last_read` and `:last_write`, Unix
  times in seconds, 0 for never. All nil when it is not known.
  """
  @spec of(term(), Target.t()) :: map()
  def of(region, target) do
    with true <- Recorder.on?(), {:ok, accesses} <- accesses(region, target) do
      sums(accesses)
    else
      _ -> Map.merge(@unknown, %{last_read: 0, last_write: 0})
    end
  end

  # Readers of a region of this node count with its writer. What others of this VM do with another
  # process's region is not known here.
  defp accesses(region, target) do
    case {Table.region(target.key), region} do
      {{:ok, writer, _reader}, _region} -> Native.accesses(writer)
      {_none, %Region{writer: writer, reader: reader}} -> mapped(writer, Native.reads(reader))
      {_none, _id} -> :error
    end
  end

  defp mapped(nil, {:ok, reads}), do: {:ok, %{reads: reads, writes: @none, views: @none}}

  defp mapped(writer, {:ok, reads}) do
    with {:ok, accesses} <- Native.accesses(writer), do: {:ok, %{accesses | reads: reads}}
  end

  defp sums(%{reads: %{first: first, shared: shared}, writes: writes, views: views}) do
    %{
      access_count: writes.calls + first.calls + shared.calls + views.calls,
      reads: first.calls + shared.calls,
      reads_by_id: first.calls,
      views: views.calls,
      writes: writes.calls,
      bytes_read: first.bytes + shared.bytes,
      bytes_written: writes.bytes,
      last_read: Enum.max([first.last, shared.last, views.last]),
      last_write: writes.last
    }
  end

  @doc "Of a region of this node, with `:value_bytes`, the length of the value written last."
  @spec counted(Native.writer()) :: map()
  def counted(writer) do
    {:ok, accesses} = Native.accesses(writer)
    accesses |> sums() |> Map.put(:value_bytes, accesses.value_bytes)
  end

  @doc "Counts a zero-copy binary of a region, when it is one of this node."
  @spec viewed(Target.t(), answer) :: answer when answer: {:ok, binary()} | {:error, Error.t()}
  def viewed(target, {:ok, binary} = answer) do
    with {:ok, writer, _reader} <- Table.region(target.key) do
      Native.viewed(writer, byte_size(binary))
    end

    answer
  end

  def viewed(_target, error), do: error
end
