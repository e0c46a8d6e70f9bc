defmodule Snakepit.SharedMemory.Health.Bookkeeping do
  @moduledoc false
  # The registry's tables and its own counts say the same. It takes the snapshot itself, between two
  # requests, so there is nothing half-done in it.

  alias Snakepit.SharedMemory.Health

  @spec check({:ok, map()} | {:error, term()}) :: [Health.finding()]
  def check({:error, reason}), do: Health.unchecked(:bookkeeping, reason)

  def check({:ok, audit}) do
    live = for record <- audit.records, record.state == :live, do: record.target.key
    owned = for record <- audit.records, record.owned, do: {record.owner_pid, record.target.key}
    mapped = for {ref, key, pid} <- audit.mappings, do: {pid, ref, key}
    mappings = for {_ref, key, _pid} <- audit.mappings, do: {key, 1}
    counted = Enum.group_by(mappings ++ audit.references, &elem(&1, 0), &elem(&1, 1))
    counts = Map.new(counted, fn {key, numbers} -> {key, Enum.sum(numbers)} end)

    watched_owned = for {pid, process} <- audit.processes, key <- process.owned, do: {pid, key}

    watched_mapped =
      for {pid, process} <- audit.processes, {ref, key} <- process.mapped, do: {pid, ref, key}

    Enum.concat([
      differ("regions with a record and regions with a writer", live, audit.live),
      differ("mappings and references, and their counts", counts, audit.counts),
      differ("owners and the processes that are watched for them", owned, watched_owned),
      differ("mappings and the processes that are watched for them", mapped, watched_mapped),
      same("regions", length(audit.records), audit.regions),
      same("bytes", audit.records |> Enum.map(& &1.bytes) |> Enum.sum(), audit.bytes)
    ])
  end

  defp differ(what, one, other) do
    {one, other} = {MapSet.new(one), MapSet.new(other)}

    if MapSet.equal?(one, other) do
      []
    else
      evidence = %{
        only_first: Health.some(MapSet.difference(one, other)),
        only_second: Health.some(MapSet.difference(other, one))
      }

      [contradiction("#{what} differ", evidence)]
    end
  end

  defp same(_what, number, number), do: []

  defp same(what, tables, counted) do
    message = "the tables hold #{tables} #{what}, the registry counts #{counted}"
    [contradiction(message, %{tables: tables, counted: counted})]
  end

  defp contradiction(message, evidence) do
    remedy = "restart the application :snakepit_shared_memory, and report this with its evidence"
    Health.finding(:bookkeeping, :critical, message, evidence, remedy)
  end
end
