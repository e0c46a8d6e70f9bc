defmodule Snakepit.SharedMemory.Bounded do
  @moduledoc false
  # Runs what may never end, others' code or a look at a file system that hangs, in a process of its
  # own that ends with the caller at the latest.
  #
  # It is not linked, so whatever it does stays its own; and its answer is the reason of its end, so
  # that nothing can arrive after the caller has given up.

  @typedoc "What is under way."
  @type task :: {pid(), reference()}

  @type failure :: :timeout | {:error | :exit | :throw, term()}

  @doc "The answer of `fun`, if it has one within so many milliseconds; then it is killed."
  @spec run((() -> value), timeout()) :: {:ok, value} | {:error, failure()} when value: term()
  def run(fun, timeout), do: fun |> start() |> await(timeout)

  @spec start((() -> term())) :: task()
  def start(fun) do
    owner = self()
    callers = [owner | Process.get(:"$callers", [])]

    spawn_monitor(fn ->
      worker = self()
      spawn(fn -> end_with(owner, worker) end)
      Process.put(:"$callers", callers)
      exit({:shutdown, {__MODULE__, answer(fun)}})
    end)
  end

  @spec await(task(), timeout()) :: {:ok, term()} | {:error, failure()}
  def await({pid, monitor}, timeout) do
    receive do
      {:DOWN, ^monitor, :process, ^pid, {:shutdown, {__MODULE__, answer}}} -> answer
      {:DOWN, ^monitor, :process, ^pid, reason} -> {:error, {:exit, reason}}
    after
      timeout ->
        stop({pid, monitor})
        {:error, :timeout}
    end
  end

  @doc "Kills it; nothing of it arrives any more."
  @spec stop(task()) :: :ok
  def stop({pid, monitor}) do
    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^monitor, :process, ^pid, _reason} -> :ok
    end
  end

  @doc "A failure, for a line in the log."
  @spec said(failure()) :: String.t()
  def said(:timeout), do: "it did not answer in time"
  def said({:error, error}) when is_exception(error), do: Exception.message(error)
  def said({kind, reason}), do: "#{kind}: #{inspect(reason, limit: 5, printable_limit: 60)}"

  defp answer(fun) do
    {:ok, fun.()}
  rescue
    error -> {:error, {:error, error}}
  catch
    kind, reason -> {:error, {kind, reason}}
  end

  defp end_with(owner, worker) do
    {owner, worker} = {Process.monitor(owner), {Process.monitor(worker), worker}}

    receive do
      {:DOWN, ^owner, :process, _pid, _reason} -> Process.exit(elem(worker, 1), :kill)
      {:DOWN, monitor, :process, _pid, _reason} when monitor == elem(worker, 0) -> :ok
    end
  end
end
