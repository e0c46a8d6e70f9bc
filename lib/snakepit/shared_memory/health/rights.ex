defmodule Snakepit.SharedMemory.Health.Rights do
  @moduledoc false
  # Nobody has the right to write a region who has ended: nobody else would ever get it.

  alias Snakepit.SharedMemory.{Health, Writers}

  @pause_ms 10

  @doc "Who has just ended is given `patience` milliseconds to be noticed."
  @spec check(non_neg_integer()) :: [Health.finding()]
  def check(patience) do
    refs = for {_key, _pid, ref, _what, _kind} <- Writers.left_behind(), do: ref
    look_again(refs, System.monotonic_time(:millisecond) + patience)
  end

  defp look_again([], _deadline), do: []

  defp look_again(refs, deadline) do
    still = Enum.filter(Writers.left_behind(), &(elem(&1, 2) in refs))

    if still == [] or System.monotonic_time(:millisecond) >= deadline do
      Enum.map(still, &finding/1)
    else
      receive do
      after
        @pause_ms -> look_again(refs, deadline)
      end
    end
  end

  defp finding({key, pid, _ref, _what, kind}) do
    Health.finding(
      :bookkeeping,
      :critical,
      "#{inspect(pid)} has ended and still has the right to write a region",
      %{region: key, pid: pid, kind: kind},
      "see the findings of the check :processes; restart the application " <>
        ":snakepit_shared_memory if it stays so"
    )
  end
end
