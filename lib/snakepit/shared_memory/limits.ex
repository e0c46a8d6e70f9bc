defmodule Snakepit.SharedMemory.Limits do
  @moduledoc false
  # What may be held at once: by this node, by one process, by one session. Pure; the registry
  # keeps the usage and asks for every region that comes and goes, one after the other, so that a
  # limit holds however many allocate at once.

  alias Snakepit.SharedMemory.{Config, Error}

  @type scope :: :node | {:process, pid()} | {:session, String.t()}

  @typedoc "Regions and bytes of each scope that has any."
  @type usage :: %{scope() => {pos_integer(), pos_integer()}}

  @typedoc "A limit, and how near to it something is, in its `unit`."
  @type state :: %{
          limit: atom(),
          scope: scope(),
          unit: :regions | :bytes,
          used: non_neg_integer(),
          maximum: pos_integer()
        }

  # From here on a limit counts as approached.
  @warn_percent 80

  @spec new() :: usage()
  def new, do: %{}

  @doc "Where a region counts. One that outlives its owner counts for no process any more."
  @spec scopes(map()) :: [scope()]
  def scopes(record) do
    [
      :node
      | if(record.owned, do: [{:process, record.owner_pid}], else: []) ++
          if(record.session, do: [{:session, record.session}], else: [])
    ]
  end

  @doc """
  Counts a region in where every limit leaves room for it.

  Answers the limits that this brings to four fifths, or the first one that leaves no room.
  """
  @spec admit(usage(), [scope()], pos_integer(), Config.t()) ::
          {:ok, usage(), approached :: [state()]} | {:full, state()}
  def admit(usage, scopes, bytes, config) do
    before = for scope <- scopes, state <- states(usage, scope, config), do: state

    case Enum.find(before, &(&1.used + needed(&1, bytes) > &1.maximum)) do
      nil -> {:ok, add(usage, scopes, bytes), Enum.flat_map(before, &approached(&1, bytes))}
      full -> {:full, full}
    end
  end

  @doc "The first limit that would refuse so much even if nothing else were held, if there is one."
  @spec never(usage(), [scope()], pos_integer(), Config.t()) :: state() | nil
  def never(usage, scopes, bytes, config) do
    Enum.find_value(scopes, fn scope ->
      usage |> states(scope, config) |> Enum.find(&(needed(&1, bytes) > &1.maximum))
    end)
  end

  @doc "Counts a region in, limits or not: it is there."
  @spec add(usage(), [scope()], pos_integer()) :: usage()
  def add(usage, scopes, bytes), do: Enum.reduce(scopes, usage, &change(&2, &1, 1, bytes))

  @doc "Counts a region out."
  @spec release(usage(), [scope()], pos_integer()) :: usage()
  def release(usage, scopes, bytes), do: Enum.reduce(scopes, usage, &change(&2, &1, -1, -bytes))

  defp change(usage, scope, regions, bytes) do
    {had_regions, had_bytes} = Map.get(usage, scope, {0, 0})

    case {had_regions + regions, had_bytes + bytes} do
      {0, 0} -> Map.delete(usage, scope)
      now -> Map.put(usage, scope, now)
    end
  end

  @doc "How near each limit of a scope is."
  @spec states(usage(), scope(), Config.t()) :: [state()]
  def states(usage, scope, config) do
    {regions, bytes} = Map.get(usage, scope, {0, 0})
    {max_regions, max_bytes} = keys(scope)

    for {key, unit, used} <- [{max_regions, :regions, regions}, {max_bytes, :bytes, bytes}],
        maximum = Map.fetch!(config, key) do
      %{limit: key, scope: scope, unit: unit, used: used, maximum: maximum}
    end
  end

  defp keys(:node), do: {:max_regions, :max_total_memory}
  defp keys({:process, _pid}), do: {:max_regions_per_process, :max_memory_per_process}
  defp keys({:session, _id}), do: {:max_regions_per_session, :max_memory_per_session}

  defp needed(%{unit: :regions}, _bytes), do: 1
  defp needed(%{unit: :bytes}, bytes), do: bytes

  # Once a crossing: the next comes after the usage has been below in between.
  defp approached(state, bytes) do
    used = state.used + needed(state, bytes)
    near? = &(&1 * 100 >= state.maximum * @warn_percent)
    if near?.(used) and not near?.(state.used), do: [%{state | used: used}], else: []
  end

  @doc "The error for a region that a limit leaves no room for."
  @spec error(state(), map(), atom(), non_neg_integer() | nil) :: Error.t()
  def error(state, record, operation, waited \\ nil) do
    needed = needed(state, record.bytes)
    available = max(state.maximum - state.used, 0)
    after_waiting = if waited, do: " (waited #{waited} ms for room)", else: ""

    Error.new(
      :resource_exhausted,
      "limit #{inspect(state.limit)}#{whose(state.scope)} reached: needed #{needed} #{state.unit}, " <>
        "available #{available}#{after_waiting}",
      region: record.target.id,
      operation: operation,
      remedy: "deallocate regions that are not needed, or raise #{inspect(state.limit)}"
    )
  end

  @doc "What to do about a limit that is near."
  @spec recommendation(state()) :: String.t()
  def recommendation(%{limit: limit, scope: scope} = state) do
    "#{state.used} of #{state.maximum} #{state.unit}#{whose(scope)} are in use: " <>
      advice(scope) <> ", or raise #{inspect(limit)} to #{suggested(state)} or more"
  end

  defp advice(:node), do: "deallocate what is not needed, allocate with a :timeout"
  defp advice({:process, _}), do: "deallocate what is not needed, spread regions over processes"
  defp advice({:session, _}), do: "release sessions that have ended, allocate with a :timeout"

  # Half as much again as is in use now.
  defp suggested(state), do: max(state.maximum + 1, div(state.used * 3, 2))

  defp whose(:node), do: ""
  defp whose({:process, pid}), do: " of process #{inspect(pid)}"
  defp whose({:session, id}), do: " of session #{inspect(id)}"
end
