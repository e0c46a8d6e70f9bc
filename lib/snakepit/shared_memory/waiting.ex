defmodule Snakepit.SharedMemory.Waiting do
  @moduledoc false
  # Allocations that wait for room, oldest first. Pure; the registry keeps one.
  #
  # Nobody is overtaken: whoever wants room of a scope that an older one waits for waits behind it,
  # or a large allocation would wait for ever while small ones take what becomes free. Who waits for
  # room of one session is in nobody's way elsewhere.

  alias Snakepit.SharedMemory.{Config, Limits}

  # queue:   id => waiter, in the order of arrival
  # blocked: scope => {how many lack room of it, what the latest of them lacks}
  defstruct next: 0, queue: :gb_trees.empty(), blocked: %{}

  @type t :: %__MODULE__{}
  @type id :: non_neg_integer()

  @typedoc "What waits: where it counts, how much it needs, what it waits for, and the caller's own."
  @type waiter :: %{
          required(:scopes) => [Limits.scope()],
          required(:bytes) => pos_integer(),
          required(:state) => Limits.state(),
          optional(atom()) => term()
        }

  @spec new() :: t()
  def new, do: %__MODULE__{}

  @spec size(t()) :: non_neg_integer()
  def size(waiting), do: :gb_trees.size(waiting.queue)

  @doc "What somebody lacks already of one of these scopes, nil when nobody waits for them."
  @spec ahead(t(), [Limits.scope()]) :: Limits.state() | nil
  def ahead(waiting, scopes) do
    Enum.find_value(scopes, fn scope ->
      with {_n, state} <- waiting.blocked[scope], do: state
    end)
  end

  @spec add(t(), waiter()) :: {id(), t()}
  def add(waiting, waiter) do
    queue = :gb_trees.insert(waiting.next, waiter, waiting.queue)
    waiting = %{waiting | queue: queue, next: waiting.next + 1}
    {waiting.next - 1, block(waiting, waiter.state)}
  end

  @spec remove(t(), id()) :: {waiter() | nil, t()}
  def remove(waiting, id) do
    case :gb_trees.lookup(id, waiting.queue) do
      {:value, waiter} ->
        waiting = %{waiting | queue: :gb_trees.delete(id, waiting.queue)}
        {waiter, unblock(waiting, waiter.state.scope)}

      :none ->
        {nil, waiting}
    end
  end

  @doc "All waiters of which `wanted?` holds, oldest first."
  @spec all(t(), (waiter() -> boolean())) :: [id()]
  def all(waiting, wanted?) do
    for {id, waiter} <- :gb_trees.to_list(waiting.queue), wanted?.(waiter), do: id
  end

  @doc """
  The oldest waiter that there is room for now and that overtakes nobody, or that there never can be
  room for: for nothing would others wait behind it. It is taken out.
  """
  @spec next(t(), Limits.usage(), Config.t()) :: {waiter(), t()} | {nil, t()}
  def next(waiting, usage, config) do
    find(:gb_trees.next(:gb_trees.iterator(waiting.queue)), waiting, usage, config, %{})
  end

  # `behind`: what the older ones lack, by scope.
  defp find(:none, waiting, _usage, _config, _behind), do: {nil, waiting}

  # Everything needs room of the node: behind one that lacks it nobody gets anything.
  defp find(_any, waiting, _usage, _config, %{node: _state}), do: {nil, waiting}

  defp find({id, waiter, rest}, waiting, usage, config, behind) do
    with nil <- Limits.never(usage, waiter.scopes, waiter.bytes, config),
         %{} = state <- lacks(waiter, usage, config, behind) do
      waiting = note(waiting, id, waiter, state)
      behind = Map.put_new(behind, state.scope, state)
      find(:gb_trees.next(rest), waiting, usage, config, behind)
    else
      _room_or_never -> remove(waiting, id)
    end
  end

  defp lacks(waiter, usage, config, behind) do
    case Enum.find(waiter.scopes, &Map.has_key?(behind, &1)) do
      nil ->
        case Limits.admit(usage, waiter.scopes, waiter.bytes, config) do
          {:ok, _usage, _approached} -> nil
          {:full, state} -> state
        end

      scope ->
        behind[scope]
    end
  end

  # What it lacks may be something else by now.
  defp note(waiting, _id, %{state: state}, state), do: waiting

  defp note(waiting, id, waiter, state) do
    queue = :gb_trees.update(id, %{waiter | state: state}, waiting.queue)
    block(unblock(%{waiting | queue: queue}, waiter.state.scope), state)
  end

  defp block(waiting, state) do
    {n, _state} = Map.get(waiting.blocked, state.scope, {0, nil})
    %{waiting | blocked: Map.put(waiting.blocked, state.scope, {n + 1, state})}
  end

  defp unblock(waiting, scope) do
    case waiting.blocked do
      %{^scope => {1, _state}} -> %{waiting | blocked: Map.delete(waiting.blocked, scope)}
      %{^scope => {n, state}} -> put_in(waiting.blocked[scope], {n - 1, state})
    end
  end
end
