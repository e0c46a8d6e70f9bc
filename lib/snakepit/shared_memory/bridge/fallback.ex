defmodule Snakepit.SharedMemory.Bridge.Fallback do
  @moduledoc false
  # What did not travel as a handle, told: a line in the log, and an event.

  alias Snakepit.SharedMemory.{Error, Telemetry}

  @type direction :: :arguments | :result

  @spec note(map(), direction(), atom() | String.t(), non_neg_integer(), String.t()) :: :ok
  def note(settings, direction, reason, bytes, said) do
    Error.Log.warn(reason, :bridge, fn ->
      "bridge: #{subject(direction)} of #{inspect(settings.command)} went plainly " <>
        "(#{bytes} bytes): #{said}"
    end)

    metadata = Map.take(settings, [:pool, :command])

    Telemetry.emit(
      :bridge,
      :fallback,
      %{count: 1, bytes: bytes},
      Map.merge(metadata, %{direction: direction, reason: reason})
    )

    Telemetry.zero_copy(:fallback, 0, bytes, Map.put(metadata, :reason, reason))
  end

  defp subject(:arguments), do: "an argument"
  defp subject(:result), do: "a result"
end
