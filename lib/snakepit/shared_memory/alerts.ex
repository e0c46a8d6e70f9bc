defmodule Snakepit.SharedMemory.Alerts do
  @moduledoc false
  # Which limits are to be said to be near. Pure; the registry keeps one.
  #
  # A usage that goes up and down around the line would be said at each crossing. So a limit that
  # was said to be near is said again only after its usage has been well below, and after a pause.

  alias Snakepit.SharedMemory.Limits

  @pause_ms 10_000
  @well_below_percent 70

  # {limit, scope} => {when it was said, whether the usage has been well below since}
  @type t :: %{{atom(), Limits.scope()} => {integer(), boolean()}}

  @spec new() :: t()
  def new, do: %{}

  @doc "Of the limits that are near now, those that are to be said."
  @spec due(t(), [Limits.state()], integer()) :: {[Limits.state()], t()}
  def due(alerts, approached, now) do
    due = Enum.filter(approached, &due?(alerts[id(&1)], now))
    # Those that may be said again are like those that never were.
    kept = for {id, said} <- alerts, not due?(said, now), into: %{}, do: {id, said}
    {due, Enum.reduce(due, kept, &Map.put(&2, id(&1), {now, false}))}
  end

  defp due?(nil, _now), do: true
  defp due?({at, below?}, now), do: below? and now - at >= @pause_ms

  @doc "Notes how near the limits are after something has gone."
  @spec eased(t(), [Limits.state()]) :: t()
  def eased(alerts, states) do
    Enum.reduce(states, alerts, fn state, alerts ->
      case alerts[id(state)] do
        {at, false} -> Map.put(alerts, id(state), {at, well_below?(state)})
        _ -> alerts
      end
    end)
  end

  defp well_below?(state), do: state.used * 100 < state.maximum * @well_below_percent

  defp id(state), do: {state.limit, state.scope}
end
