defmodule Workers.Pool do
  @moduledoc false
  # Gives jobs to workers that are free, the oldest job first. Only requests pass here, and a large one
  # is a handle or a binary that is not copied; answers go from the worker to the caller.

  use GenServer

  @type job :: %{to: reference(), caller: pid(), request: iodata(), deadline: integer()}

  def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @spec run(job()) :: :ok
  def run(job), do: GenServer.cast(__MODULE__, {:run, job})

  @doc "A worker says that it is free."
  @spec free(pid()) :: :ok
  def free(worker), do: GenServer.cast(__MODULE__, {:free, worker})

  @doc "The workers, and those of them that are busy."
  @spec workers() :: %{workers: [pid()], busy: [pid()]}
  def workers, do: GenServer.call(__MODULE__, :workers)

  # free: workers; busy: worker => job; known: worker => monitor
  @impl true
  def init(nil), do: {:ok, %{free: [], busy: %{}, known: %{}, waiting: :queue.new()}}

  @impl true
  def handle_call(:workers, _from, state) do
    {:reply, %{workers: Map.keys(state.known), busy: Map.keys(state.busy)}, state}
  end

  @impl true
  def handle_cast({:run, job}, state) do
    {:noreply, next(%{state | waiting: :queue.in(job, state.waiting)})}
  end

  def handle_cast({:free, worker}, state) do
    known = Map.put_new_lazy(state.known, worker, fn -> Process.monitor(worker) end)
    state = %{state | known: known, busy: Map.delete(state.busy, worker)}
    {:noreply, next(%{state | free: [worker | state.free]})}
  end

  @impl true
  def handle_info({:DOWN, _monitor, :process, worker, reason}, state) do
    {job, busy} = Map.pop(state.busy, worker)
    if job, do: send(job.to, {job.to, {:died, reason}})
    free = List.delete(state.free, worker)
    {:noreply, %{state | busy: busy, free: free, known: Map.delete(state.known, worker)}}
  end

  defp next(%{free: [worker | free]} = state) do
    case :queue.out(state.waiting) do
      {:empty, _} ->
        state

      {{:value, job}, waiting} ->
        state = %{state | waiting: waiting}

        if waited_for?(job) do
          Workers.Worker.run(worker, job)
          next(%{state | free: free, busy: Map.put(state.busy, worker, job)})
        else
          next(state)
        end
    end
  end

  defp next(state), do: state

  # Nobody waits any more for one that is late, or whose caller has died.
  defp waited_for?(job) do
    Process.alive?(job.caller) and System.monotonic_time(:millisecond) < job.deadline
  end
end
