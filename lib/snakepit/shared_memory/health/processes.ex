defmodule Snakepit.SharedMemory.Health.Processes do
  @moduledoc false
  # The supervised processes are there and answer, and the reaper runs.
  #
  # Each is asked as a debugger would ask it, so that one question fits all; the answer also tells
  # whether it is suspended. Nothing here waits longer than it was told to.

  alias Snakepit.SharedMemory.Health

  @spec check(GenServer.server(), timeout()) :: [Health.finding()]
  def check(supervisor, timeout) do
    case ask(supervisor, :which_children, timeout) do
      {:ok, children} ->
        for {id, pid, _type, _modules} <- Enum.reverse(children),
            problem <- List.wrap(problem(pid, timeout)) do
          failed(id, pid, problem)
        end

      {:error, reason} ->
        [failed(:supervisor, supervisor, "does not answer (#{inspect(reason, limit: 5)})")]
    end
  end

  # The periodic check is one of them.
  defp problem(pid, _timeout) when pid == self(), do: nil

  defp problem(pid, timeout) when is_pid(pid) do
    case :sys.get_status(pid, timeout) do
      {:status, _pid, _module, [_dictionary, :running | _]} -> nil
      {:status, _pid, _module, _suspended} -> "is suspended"
    end
  catch
    :exit, {:timeout, _} -> "does not answer"
    :exit, _ended -> "has just ended"
  end

  defp problem(_undefined_or_restarting, _timeout), do: "is not running"

  defp failed(id, pid, problem) do
    remedy = "see the log for why; restart the application :snakepit_shared_memory if it stays so"

    evidence = %{process: id, pid: pid, queue: queue(pid)}
    Health.finding(:processes, :critical, "#{inspect(id)} #{problem}", evidence, remedy)
  end

  defp queue(pid) when is_pid(pid) do
    with {:message_queue_len, length} <- Process.info(pid, :message_queue_len), do: length
  end

  defp queue(_name), do: nil

  @spec reaper(GenServer.server(), timeout()) :: [Health.finding()]
  def reaper(janitor, timeout) do
    case ask(janitor, :stats, timeout) do
      {:ok, {:ok, _counters}} ->
        []

      {:ok, :not_running} ->
        remedy = "see the log for why it could not start; it tries again every few seconds"
        [silent("the reaper is not running", %{janitor: janitor}, remedy)]

      {:ok, {:error, {code, message, _segment, remedy}}} ->
        [silent("the reaper has ended: #{message}", %{code: code}, remedy)]

      {:error, reason} ->
        evidence = %{janitor: janitor, reason: reason}
        remedy = "see the findings of the check :processes"
        [silent("the reaper's process does not answer", evidence, remedy)]
    end
  end

  defp silent(message, evidence, remedy) do
    Health.finding(
      :reaper,
      :warning,
      message <> ": what dead processes leave stays",
      evidence,
      remedy
    )
  end

  # Neither a late answer nor an exit reaches the caller.
  defp ask(server, question, timeout) do
    case server |> :gen_server.send_request(question) |> :gen_server.receive_response(timeout) do
      {:reply, answer} -> {:ok, answer}
      :timeout -> {:error, :timeout}
      {:error, {reason, _server}} -> {:error, reason}
    end
  end
end
