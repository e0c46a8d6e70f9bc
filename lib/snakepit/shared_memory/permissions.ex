defmodule Snakepit.SharedMemory.Permissions do
  @moduledoc false
  # Who may open the files of a region: a map of owner, group and other, or the mode itself.
  #
  # The owner always reads and writes, for it is the owner's process that fills the segment.

  @type t :: %{
          owner: :read_write,
          group: :read_write | :read_only | :none,
          other: :read_write | :read_only | :none
        }

  @bits %{read_write: 6, read_only: 4, none: 0}
  @default %{owner: :read_write, group: :none, other: :none}

  @doc "The mode of the files; what a map leaves out is the default, 0600."
  @spec mode(term()) :: {:ok, non_neg_integer()} | :error
  def mode(mode) when is_integer(mode), do: if(mode in modes(), do: {:ok, mode}, else: :error)

  def mode(%{} = map) when not is_struct(map) do
    with [] <- Map.keys(map) -- Map.keys(@default),
         %{owner: :read_write, group: group, other: other} <- Map.merge(@default, map),
         %{^group => group_bits, ^other => other_bits} <- @bits do
      {:ok, 0o600 + group_bits * 8 + other_bits}
    else
      _ -> :error
    end
  end

  def mode(_other), do: :error

  # Those that a map can say: to write without reading, or to run, means nothing for memory.
  defp modes, do: for(group <- [0, 4, 6], other <- [0, 4, 6], do: 0o600 + group * 8 + other)

  @doc "What a mode allows, as a map."
  @spec to_map(non_neg_integer()) :: t()
  def to_map(mode) do
    %{
      owner: :read_write,
      group: allowed(div(mode, 8)),
      other: allowed(mode)
    }
  end

  defp allowed(bits) do
    case rem(bits, 8) do
      bits when bits in [6, 7] -> :read_write
      bits when bits in [4, 5] -> :read_only
      _ -> :none
    end
  end

  @doc "What is expected of the option, for its error."
  @spec expected() :: String.t()
  def expected do
    modes = Enum.map_join(modes(), ", ", &("0o" <> Integer.to_string(&1, 8)))

    "one of the modes #{modes}, or a map with :owner (:read_write) and :group and :other " <>
      "(:read_write, :read_only or :none)"
  end
end
