defmodule Snakepit.SharedMemory.Bridge.Threshold do
  @moduledoc false
  # From how many bytes on an argument of a pool's tools travels as a handle.
  #
  # What a way costs can only be seen in whole calls, with the tool's own work in them, and that work
  # grows with the bytes too. So the two ways are compared in trials, as medicines are: of the calls
  # with a single argument that is within a factor of four of the threshold, one in sixteen is a
  # trial, and chance says which way it goes. Then both ways have the same sizes and the same work,
  # and what differs is the way. Of each way the last 32 costs per byte are kept, and their medians
  # compared once each has eight: where handles are cheaper by a tenth the threshold is halved, where
  # plain transfer is, it is doubled, and the trials begin anew around the new one. It stays within
  # 4 KiB and 4 MiB.
  #
  # A row is read and written without a lock: of two trials that end at once one may be lost.

  @table :snakepit_shm_bridge

  @least 4 * 1024
  @most 4 * 1024 * 1024
  @kept 32
  @enough 8
  @factor 2
  @margin 1.1
  @window 4
  @one_in 16
  # Pools beyond that, such as many short-lived ones named by pids, keep what is configured.
  @pools 1_000

  @type way :: :plain | :handle
  @type t :: %{
          bytes: pos_integer(),
          plain: [float()],
          handle: [float()],
          moves: non_neg_integer()
        }

  @doc "Makes the table, which belongs to the caller: the application."
  @spec create_table() :: :ok
  def create_table do
    :ets.new(@table, [:named_table, :public, :set, read_concurrency: true])
    :ok
  end

  @doc "What is known of a pool; nothing is, before its first trial."
  @spec of(term(), pos_integer()) :: t()
  def of(pool, configured) do
    case :ets.lookup(@table, pool) do
      [{^pool, ^configured, known}] -> known
      # Never tried, or configured anew since.
      _ -> new(configured)
    end
  rescue
    ArgumentError -> new(configured)
  end

  defp new(bytes), do: %{bytes: bytes, plain: [], handle: [], moves: 0}

  @doc "Whether a call with one argument of that size is a trial, and of which way."
  @spec trial(t(), [non_neg_integer()]) :: way() | nil
  def trial(%{bytes: bytes}, [size]) when size * @window >= bytes and size <= bytes * @window do
    case :rand.uniform(@one_in * 2) do
      1 -> :plain
      2 -> :handle
      _ -> nil
    end
  end

  def trial(_known, _sizes), do: nil

  @doc "Bytes from which a value may matter for a trial."
  @spec lowest(t()) :: pos_integer()
  def lowest(%{bytes: bytes}), do: max(div(bytes, @window), 1)

  @doc "Notes what a trial took, in nanoseconds; answers what is known now."
  @spec observe(term(), pos_integer(), way(), pos_integer(), non_neg_integer()) :: t()
  def observe(pool, configured, way, size, nanoseconds) do
    known = pool |> of(configured) |> add(way, nanoseconds / size)

    if :ets.member(@table, pool) or :ets.info(@table, :size) < @pools do
      :ets.insert(@table, {pool, configured, known})
    end

    known
  rescue
    # The application is stopping.
    ArgumentError -> new(configured)
  end

  @doc "One trial more. Pure."
  @spec add(t(), way(), float()) :: t()
  def add(known, way, cost) do
    known |> Map.update!(way, &Enum.take([cost | &1], @kept)) |> decide()
  end

  defp decide(%{plain: plain, handle: handle} = known)
       when length(plain) >= @enough and length(handle) >= @enough do
    {plain, handle} = {median(plain), median(handle)}

    cond do
      handle * @margin < plain -> move(known, max(div(known.bytes, @factor), @least))
      plain * @margin < handle -> move(known, min(known.bytes * @factor, @most))
      true -> known
    end
  end

  defp decide(known), do: known

  # At the bound the trials go on as they are. One configured beyond the bounds moves towards them.
  defp move(%{bytes: bytes} = known, bytes), do: known
  defp move(known, bytes), do: %{new(bytes) | moves: known.moves + 1}

  @doc "Nanoseconds per byte of a way, with the tools' own work in them; nil before the first trial."
  @spec cost(t(), way()) :: float() | nil
  def cost(known, way) do
    case Map.fetch!(known, way) do
      [] -> nil
      costs -> median(costs)
    end
  end

  defp median(costs), do: costs |> Enum.sort() |> Enum.at(div(length(costs), 2))
end
