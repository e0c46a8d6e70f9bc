defmodule Snakepit.SharedMemory.References do
  @moduledoc false
  # Who keeps a region: its owner, its mappings, and references without a mapping. A part of the
  # registry, on the tables. What holds after a crash in the middle, `check/1` finds again.

  alias Snakepit.SharedMemory.{Error, Expiry, Table, Target, Telemetry, Writers}
  alias Snakepit.SharedMemory.Table.Record

  @doc "Marks a region that goes with its last reference, if that has gone."
  @spec check(Target.key()) :: :ok
  def check(key) do
    with {:ok, %Record{policy: :reference_counted, owned: false, marked: nil} = record} <-
           Table.record(key),
         0 <- Table.count(key) do
      Table.put_record(%{record | marked: System.monotonic_time(:millisecond)})
      Expiry.watch(key)
      Telemetry.marked(record.target.id)
    end

    :ok
  end

  @doc "Takes the mark away: somebody refers to it again."
  @spec unmark(Target.key()) :: :ok
  def unmark(key) do
    with {:ok, %Record{marked: marked} = record} when marked != nil <- Table.record(key) do
      Table.put_record(%{record | marked: nil})
    end

    :ok
  end

  @doc "Whether what `Expiry` has seen of a region still holds."
  @spec expired?(Record.t(), {:mark, integer()} | {:idle, reference(), non_neg_integer()}) ::
          boolean()
  def expired?(record, {:mark, marked}), do: record.marked == marked

  def expired?(%{target: %{key: key}} = record, {:idle, token, uses}) do
    record.token == token and Table.count(key) == 0 and Table.reader(key) == nil and
      Table.uses(key) == uses and Writers.holder(key) == nil
  end

  @doc """
  What the end of its owner means for each of these regions.

  Answers what ends with it, and the records of what stays.
  """
  @spec owner_down(Enumerable.t()) :: {[{Record.t(), term()}], [Record.t()]}
  def owner_down(keys) do
    Enum.reduce(keys, {[], []}, fn key, {taken, kept} ->
      case Table.record(key) do
        {:ok, %Record{policy: policy} = record} when policy != :automatic ->
          Table.put_record(%{record | owned: false})
          check(key)
          {taken, [record | kept]}

        # Also what is still being created.
        _ ->
          {List.wrap(Table.ending(key)) ++ taken, kept}
      end
    end)
  end

  @doc "One more reference."
  @spec refer(Target.t(), pid() | reference(), pid(), reference(), atom()) ::
          {:ok, pos_integer()} | {:error, Error.t()}
  def refer(target, holder, pid, token, operation) do
    case {Table.record(target.key), Table.reference(target.key, holder)} do
      {:error, _row} ->
        {:error, Error.not_found(target.id, operation)}

      {{:ok, record}, {_id, _pid, _n, ^token}} ->
        {:ok, total(record)}

      {{:ok, _record}, {_id, other, _n, _token}} when other != pid ->
        {:error, anothers(target, holder, other, operation)}

      {{:ok, record}, _row} ->
        Table.add_reference(record, holder, pid, token)
        unmark(target.key)
        {:ok, total(record)}
    end
  end

  @doc """
  One reference less.

  `{:last, pid, count}`: it was the holder's last, for which `pid` was watched. `{:released, record}`:
  it was the owner's.
  """
  @spec unrefer(Target.t(), pid() | reference(), reference(), boolean(), atom()) ::
          {:ok, non_neg_integer()}
          | {:last, pid(), non_neg_integer()}
          | {:released, Record.t()}
          | {:error, Error.t()}
  def unrefer(%{key: key} = target, holder, token, again?, operation) do
    case {Table.record(key), Table.reference(key, holder)} do
      {:error, _row} ->
        {:error, Error.not_found(target.id, operation)}

      {{:ok, record}, {_id, _pid, _n, ^token}} ->
        {:ok, total(record)}

      {{:ok, record}, {_id, pid, _n, _token} = row} ->
        left = Table.drop_reference(row, token)
        check(key)
        if left == 0, do: {:last, pid, total(record)}, else: {:ok, total(record)}

      {{:ok, %{owned: true, owner_pid: ^holder} = record}, nil} ->
        release(record, operation)

      {{:ok, record}, nil} ->
        if again?,
          do: {:ok, total(record)},
          else: {:error, not_referenced(target, holder, operation)}
    end
  end

  defp release(%{policy: :reference_counted} = record, _operation) do
    Table.put_record(%{record | owned: false})
    check(record.target.key)
    {:released, record}
  end

  defp release(%{target: target, policy: policy}, operation) do
    {:error,
     Error.new(
       :invalid_argument,
       "the owner of a region with cleanup_policy: #{inspect(policy)} keeps it",
       region: target.id,
       operation: operation,
       remedy: "deallocate the region, or allocate it with cleanup_policy: :reference_counted"
     )}
  end

  @doc "References of this VM: the owner's, the mappings, and the others."
  @spec total(Record.t()) :: non_neg_integer()
  def total(record), do: Table.count(record.target.key) + if(record.owned, do: 1, else: 0)

  defp anothers(target, holder, other, operation) do
    Error.new(
      :invalid_argument,
      "the reference #{inspect(holder)} to #{target.id} belongs to #{inspect(other)}",
      region: target.id,
      operation: operation,
      remedy: "make a reference of your own with make_ref(), or pass a pid"
    )
  end

  defp not_referenced(target, holder, operation) do
    Error.new(:not_referenced, "#{inspect(holder)} holds no reference to #{target.id}",
      region: target.id,
      operation: operation,
      remedy:
        "decrement once for each increment, with the same pid or reference; give a mapping " <>
          "back with unmap_region/2"
    )
  end
end
