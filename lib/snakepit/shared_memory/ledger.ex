defmodule Snakepit.SharedMemory.Ledger do
  @moduledoc false
  # What each process of this node owns, has mapped and refers to, and what that adds up to. The
  # registry's own copy: it is rebuilt from the tables whenever the registry starts.
  #
  # A process is monitored as long as it has anything here.

  alias Snakepit.SharedMemory.{Limits, Table, Target}
  alias Snakepit.SharedMemory.Table.Record

  # processes: pid => %{monitor, owned: keys, mapped: %{key => refs, latest first}, referred: {key, holder}s}
  defstruct processes: %{}, usage: %{}

  @type process :: %{
          monitor: reference(),
          owned: MapSet.t(Target.key()),
          mapped: %{Target.key() => [reference()]},
          referred: MapSet.t({Target.key(), pid() | reference()})
        }

  @type t :: %__MODULE__{processes: %{pid() => process()}, usage: Limits.usage()}

  @doc "What the tables hold."
  @spec rebuild([Record.t()], [Table.mapping()], [Table.reference_row()]) :: t()
  def rebuild(records, mappings, references) do
    ledger = Enum.reduce(records, %__MODULE__{}, &own(&2, &1))
    mapped = fn {ref, key, pid, _, _, _}, ledger -> hold(ledger, pid, key, ref) end
    ledger = Enum.reduce(mappings, ledger, mapped)
    referred = fn {{key, holder}, pid, _n, _token}, ledger -> refer(ledger, pid, key, holder) end
    Enum.reduce(references, ledger, referred)
  end

  @doc "Counts a region in, and its owner if that still has it."
  @spec own(t(), Record.t()) :: t()
  def own(ledger, record) do
    ledger = %{ledger | usage: Limits.add(ledger.usage, Limits.scopes(record), record.bytes)}
    if record.owned, do: update_owned(ledger, record, &MapSet.put/2), else: ledger
  end

  @doc "Counts a region out; its owner may not be here any more."
  @spec disown(t(), Record.t()) :: t()
  def disown(ledger, record) do
    ledger = uncount(ledger, record)

    if record.owned and is_map_key(ledger.processes, record.owner_pid),
      do: update_owned(ledger, record, &MapSet.delete/2),
      else: ledger
  end

  defp uncount(ledger, record) do
    %{ledger | usage: Limits.release(ledger.usage, Limits.scopes(record), record.bytes)}
  end

  @doc "Counts a region on without its owner, who is not here any more."
  @spec orphan(t(), Record.t()) :: t()
  def orphan(ledger, record) do
    ledger |> uncount(record) |> own(%{record | owned: false})
  end

  defp update_owned(ledger, record, change) do
    update(ledger, record.owner_pid, &%{&1 | owned: change.(&1.owned, record.target.key)})
  end

  @spec hold(t(), pid(), Target.key(), reference()) :: t()
  def hold(ledger, pid, key, ref) do
    update(ledger, pid, fn process ->
      %{process | mapped: Map.update(process.mapped, key, [ref], &[ref | &1])}
    end)
  end

  @spec let_go(t(), pid(), Target.key(), reference()) :: t()
  def let_go(ledger, pid, key, ref) do
    update(ledger, pid, fn process ->
      case List.delete(Map.get(process.mapped, key, []), ref) do
        [] -> %{process | mapped: Map.delete(process.mapped, key)}
        left -> %{process | mapped: Map.put(process.mapped, key, left)}
      end
    end)
  end

  @doc "The latest mapping of a region by a process."
  @spec mapping(t(), pid(), Target.key()) :: reference() | nil
  def mapping(ledger, pid, key) do
    case ledger.processes do
      %{^pid => %{mapped: %{^key => [ref | _]}}} -> ref
      _ -> nil
    end
  end

  @spec refer(t(), pid(), Target.key(), pid() | reference()) :: t()
  def refer(ledger, pid, key, holder) do
    update(ledger, pid, &%{&1 | referred: MapSet.put(&1.referred, {key, holder})})
  end

  @spec unrefer(t(), pid(), Target.key(), pid() | reference()) :: t()
  def unrefer(ledger, pid, key, holder) do
    if is_map_key(ledger.processes, pid),
      do: update(ledger, pid, &%{&1 | referred: MapSet.delete(&1.referred, {key, holder})}),
      else: ledger
  end

  @doc "All that is counted, for an audit."
  @spec audit(t()) :: %{regions: non_neg_integer(), bytes: non_neg_integer(), processes: map()}
  def audit(ledger) do
    {regions, bytes} = Map.get(ledger.usage, :node, {0, 0})

    processes =
      Map.new(ledger.processes, fn {pid, process} ->
        mapped = for {key, refs} <- process.mapped, ref <- refs, do: {ref, key}
        {pid, %{owned: process.owned, mapped: mapped}}
      end)

    %{regions: regions, bytes: bytes, processes: processes}
  end

  @doc "Forgets a process that has ended, by our own monitor; what it had."
  @spec take(t(), pid(), reference()) :: {process() | nil, t()}
  def take(ledger, pid, monitor) do
    case ledger.processes do
      %{^pid => %{monitor: ^monitor} = process} ->
        {process, %{ledger | processes: Map.delete(ledger.processes, pid)}}

      _ ->
        {nil, ledger}
    end
  end

  defp update(ledger, pid, change) do
    process = change.(ledger.processes[pid] || watch(pid))

    if process.mapped == %{} and
         Enum.all?([process.owned, process.referred], &(MapSet.size(&1) == 0)) do
      Process.demonitor(process.monitor, [:flush])
      %{ledger | processes: Map.delete(ledger.processes, pid)}
    else
      %{ledger | processes: Map.put(ledger.processes, pid, process)}
    end
  end

  defp watch(pid) do
    %{monitor: Process.monitor(pid), owned: MapSet.new(), mapped: %{}, referred: MapSet.new()}
  end
end
