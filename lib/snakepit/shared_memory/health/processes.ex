defmodule Snakepit.SharedMemory.Health.Processes do
  @moduledoc false
  # The supervised processes are there and answer, the reaper runs, and events are emitted.
  #
  # Each is asked as a debugger would ask it, so that one question fits all; the answer also tells
  # whether it is suspended. Nothing here waits longer than it was told to.

  alias Snakepit.SharedMemory.{Bounded, Health}

  # One that has just been started again was not there a moment ago.
  @pause_ms 20

  # `asker` is the process that checks, if it is one of them: it does not answer itself.
  @spec check(GenServer.server(), pos_integer(), pid()) :: [Health.finding()]
  def check(supervisor, timeout, asker \\ self()) do
    deadline = now() + timeout

    case look(supervisor, deadline, asker) do
      {:ok, []} -> []
      {:ok, found} -> found |> look_again(supervisor, deadline, asker) |> Enum.map(&failed/1)
      {:error, reason} -> [failed({:supervisor, supervisor, unanswered(reason)})]
    end
  end

  defp unanswered(reason), do: "does not answer (#{inspect(reason, limit: 5)})"

  # All are asked at once, so that a few that hang take no more time than one.
  defp look(supervisor, deadline, asker) do
    with {:ok, children} <- ask(supervisor, :which_children, left(deadline)) do
      asked =
        for {id, pid, _type, _modules} <- Enum.reverse(children), pid != asker do
          {id, pid, Bounded.start(fn -> problem(pid, left(deadline)) end)}
        end

      {:ok,
       for {id, pid, task} <- asked,
           {:ok, problem} when problem != nil <- [Bounded.await(task, :infinity)] do
         {id, pid, problem}
       end}
    end
  end

  # What took all the time there was is not asked once more.
  defp look_again(found, supervisor, deadline, asker) do
    with true <- left(deadline) > @pause_ms,
         :ok <- Process.sleep(@pause_ms),
         {:ok, again} <- look(supervisor, deadline, asker) do
      still = Enum.map(again, &elem(&1, 0))
      Enum.filter(found, &(elem(&1, 0) in still))
    else
      _ -> found
    end
  end

  defp left(deadline), do: max(deadline - now(), 0)
  defp now, do: System.monotonic_time(:millisecond)

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

  defp failed({id, pid, problem}) do
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

  # From here on a handler is slow rather than at work.
  @slow_ms 5_000

  @spec events(GenServer.server(), timeout()) :: [Health.finding()]
  def events(outbox, timeout) do
    case ask(outbox, :status, timeout) do
      {:ok, %{busy_ms: ms, event: event} = status} when ms >= @slow_ms ->
        message =
          "a handler of #{inspect(event)} has not returned for #{ms} ms: #{status.waiting} events " <>
            "wait, #{status.dropped} were dropped"

        remedy = "have the handler hand its work to a process of its own"
        [Health.finding(:events, :warning, message, status, remedy)]

      # That it does not answer is told by the check of the processes.
      _ ->
        []
    end
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
