defmodule Snakepit.SharedMemory.Health.Bookkeeping do
  @moduledoc false
  # The registry's tables and its own counts say the same. It takes the snapshot itself, between two
  # requests, so there is nothing half-done in it. And nothing is kept for processes that have ended,
  # which those who watch them are told a moment later.

  alias Snakepit.SharedMemory.{Health, Registry, Table, Writers}

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
      same("bytes", audit.records |> Enum.map(& &1.bytes) |> Enum.sum(), audit.bytes),
      referred(audit),
      of_the_dead("mappings", fn -> mappings_of_the_dead(audit) end),
      of_the_dead("references", &references_of_the_dead/0),
      of_the_dead("rights to write", &Writers.left_behind/0)
    ])
  end

  # They go with their region.
  defp referred(audit) do
    known = MapSet.new(audit.records, & &1.target.key)

    case for({key, _n} <- audit.references, key not in known, uniq: true, do: key) do
      [] ->
        []

      keys ->
        [contradiction("references to regions that are gone", %{regions: Health.some(keys)})]
    end
  end

  defp of_the_dead(what, rows) do
    with [_ | _] <- rows.(),
         [_ | _] = rows <- Health.confirmed(fn -> settled(rows) end, & &1) do
      [contradiction("#{what} of processes that have ended", %{rows: Health.some(rows)})]
    end
  end

  # Whoever answers has taken what it was told before that.
  defp settled(rows) do
    for process <- [Registry, Writers] do
      try do
        :sys.get_status(process, 1_000)
      catch
        :exit, _ -> :ok
      end
    end

    rows.()
  end

  defp mappings_of_the_dead(audit) do
    for {ref, key, pid} <- audit.mappings,
        not Process.alive?(pid),
        Table.mapping(ref) != nil,
        do: {ref, key, pid}
  end

  defp references_of_the_dead do
    for {{key, holder}, pid, _n, _token} <- Table.all_references(),
        not Process.alive?(pid),
        do: {key, holder, pid}
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
