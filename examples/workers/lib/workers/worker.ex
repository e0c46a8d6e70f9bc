defmodule Workers.Worker do
  @moduledoc false
  # A Python process on a port, with one job at a time. It ends with its Python process, and the other
  # way round: that one ends when its standard input does.

  use GenServer, shutdown: 10_000

  alias Workers.Pool

  def start_link(n), do: GenServer.start_link(__MODULE__, n)

  @spec run(pid(), Pool.job()) :: :ok
  def run(worker, job), do: GenServer.cast(worker, {:run, job})

  @doc "The process id of its Python process."
  @spec os_pid(pid()) :: non_neg_integer()
  def os_pid(worker), do: GenServer.call(worker, :os_pid)

  @impl true
  def init(_n) do
    # So that `terminate/2` is called.
    Process.flag(:trap_exit, true)
    {:ok, config} = Snakepit.SharedMemory.Config.fetch(:workers)
    script = Path.join([File.cwd!(), "python", "worker.py"])

    port =
      Port.open({:spawn_executable, python()}, [
        :binary,
        :exit_status,
        :use_stdio,
        packet: 4,
        args: [script],
        env: [
          {~c"SNAKEPIT_SHM_NAMESPACE", String.to_charlist(config.namespace)},
          {~c"SNAKEPIT_SHM_DIR", String.to_charlist(config.dir)}
        ]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    {:ok, %{port: port, os_pid: os_pid, job: nil, timer: nil}}
  end

  defp python do
    System.get_env("SNAKEPIT_PYTHON") || Path.expand("../../.venv/bin/python", File.cwd!())
  end

  @impl true
  def handle_call(:os_pid, _from, state), do: {:reply, state.os_pid, state}

  @impl true
  def handle_cast({:run, job}, state) do
    Port.command(state.port, job.request)
    timer = :erlang.start_timer(max(job.deadline, now()), self(), :late, abs: true)
    {:noreply, %{state | job: job, timer: timer}}
  end

  @impl true
  # Its imports are done, and it waits for requests.
  def handle_info({port, {:data, "H"}}, %{port: port, job: nil} = state) do
    Pool.free(self())
    {:noreply, state}
  end

  def handle_info({port, {:data, <<?C, _::binary>> = data}}, %{port: port} = state) do
    send(state.job.to, {state.job.to, {:data, data}})
    {:noreply, state}
  end

  def handle_info({port, {:data, data}}, %{port: port} = state) do
    send(state.job.to, {state.job.to, {:data, data}})
    :erlang.cancel_timer(state.timer)
    Pool.free(self())
    {:noreply, %{state | job: nil, timer: nil}}
  end

  # The supervisor starts another; the pool tells the caller.
  def handle_info({port, {:exit_status, status}}, %{port: port} = state) do
    {:stop, {:shutdown, {:exit_status, status}}, state}
  end

  # Whoever waited has given up; what it still does is of no use to anybody.
  def handle_info({:timeout, timer, :late}, %{timer: timer} = state) do
    kill(state)
    {:noreply, state}
  end

  def handle_info({:timeout, _answered_in_time, :late}, state), do: {:noreply, state}

  # Ours, whose status comes as well, or that of a program that was run here.
  def handle_info({:EXIT, port, _reason}, state) when is_port(port), do: {:noreply, state}

  # The process is waited for: its shared memory ends with it.
  @impl true
  def terminate({:shutdown, {:exit_status, _}}, _state), do: :ok

  def terminate(_reason, %{port: port, job: job} = state) do
    if job, do: kill(state), else: Port.command(port, "Q")

    receive do
      {^port, {:exit_status, _status}} -> :ok
    after
      5_000 -> kill(state)
    end
  end

  defp kill(state), do: System.cmd("kill", ["-KILL", "#{state.os_pid}"], stderr_to_stdout: true)

  defp now, do: System.monotonic_time(:millisecond)
end
