defmodule Snakepit.SharedMemory.Iodata do
  @moduledoc false
  # How long iodata is, found with a bounded amount of work: a list may hold the same list many times over, so
  # that a small term can stand for more than anybody could ever walk through, and `IO.iodata_length/1` would
  # try.

  alias Snakepit.SharedMemory.{Error, Writing}

  # As the native library has it for what it writes: some tenths of a second.
  @cells 67_108_864

  @doc "Its bytes, or the error of `operation` for what is none, or has more cells than are walked through."
  @spec length(term(), atom()) :: {:ok, non_neg_integer()} | {:error, Error.t()}
  def length(data, operation) do
    case measure(data) do
      {:ok, bytes} -> {:ok, bytes}
      :not_iodata -> {:error, Writing.not_iodata(data, operation)}
      :too_many -> {:error, too_many(operation)}
    end
  end

  defp measure(data) when is_binary(data), do: {:ok, byte_size(data)}
  defp measure(data) when is_list(data), do: walk(data, [], 0, @cells)
  defp measure(_data), do: :not_iodata

  # What is left of this list, what comes after it, the bytes so far, and how many cells may still come.
  defp walk([_ | _], _later, _bytes, 0), do: :too_many

  defp walk([head | tail], later, bytes, left) when is_binary(head),
    do: walk(tail, later, bytes + byte_size(head), left - 1)

  defp walk([head | tail], later, bytes, left) when head in 0..255,
    do: walk(tail, later, bytes + 1, left - 1)

  defp walk([head | []], later, bytes, left) when is_list(head),
    do: walk(head, later, bytes, left - 1)

  defp walk([head | tail], later, bytes, left) when is_list(head),
    do: walk(head, [tail | later], bytes, left - 1)

  defp walk([_ | _], _later, _bytes, _left), do: :not_iodata
  defp walk([], [], bytes, _left), do: {:ok, bytes}
  defp walk([], [next | later], bytes, left), do: walk(next, later, bytes, left)

  # The end of a list that is a binary.
  defp walk(tail, later, bytes, left) when is_binary(tail),
    do: walk([], later, bytes + byte_size(tail), left)

  defp walk(_tail, _later, _bytes, _left), do: :not_iodata

  defp too_many(operation) do
    Error.new(
      :invalid_option,
      "invalid option data: a list of more than #{@cells} cells, flatten it first",
      operation: operation,
      remedy: "pass a binary, or a list that does not hold the same lists over and over"
    )
  end
end
