defmodule Workers.Mishaps do
  @moduledoc "Workers that are killed in the middle, and what becomes of their callers and of the memory."

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.Bridge
  alias Workers.{Pool, Work, Worker}

  @doc "A tool whose worker is killed: its caller gets an error, or with `:retries` the result."
  @spec killed_tool() :: {{:error, term()}, {:ok, term()}}
  def killed_tool do
    values = Bridge.value(:binary.copy(<<3>>, 1_000_000), dtype: :u8)

    [first, second] =
      for retries <- [0, 1] do
        marker = Path.join(System.tmp_dir!(), "workers-#{System.pid()}-#{retries}")
        args = %{values: values, marker: marker}
        answer = Bridge.execute("die", args, via: Workers, retries: retries)
        File.rm(marker)
        answer
      end

    {first, second}
  end

  @doc """
  Many jobs at once, and busy workers killed at random moments while there are jobs. Each job may be tried again; answers
  how many came to the right result, and how many workers were killed.
  """
  @spec killed_at_random(pos_integer()) :: %{right: integer(), killed: integer()}
  def killed_at_random(jobs) do
    work = Work.new("blur", 5_000_000)
    {:ok, expected} = Work.run(work, :pipe)
    killer = Task.async(fn -> kill_until_told(0) end)

    right =
      1..jobs
      |> Task.async_stream(fn _ -> Work.run(work, :handle, retries: 1_000) == {:ok, expected} end,
        max_concurrency: 6,
        ordered: false,
        timeout: 300_000
      )
      |> Enum.count(&(&1 == {:ok, true}))

    send(killer.pid, :enough)
    %{right: right, killed: Task.await(killer)}
  end

  defp kill_until_told(killed) do
    receive do
      :enough -> killed
    after
      100 + :rand.uniform(400) -> kill_until_told(killed + kill_one())
    end
  end

  # One that has ended by itself, or is on its way back, does not count.
  defp kill_one do
    with [_ | _] = workers <- Pool.workers().busy,
         os_pid = workers |> Enum.random() |> Worker.os_pid(),
         {_, 0} <- System.cmd("kill", ["-KILL", "#{os_pid}"], stderr_to_stdout: true) do
      1
    else
      _ -> 0
    end
  catch
    :exit, _gone -> 0
  end

  @doc "A caller that is killed while its job is under way, and a job that does not end."
  @spec given_up() :: {:error, :timeout}
  def given_up do
    values = Bridge.value(:binary.copy(<<3>>, 1_000_000), dtype: :u8)
    hang = fn -> Bridge.execute("hang", %{values: values}, via: Workers, timeout: 1_000) end
    caller = spawn(hang)
    answer = hang.()
    Process.exit(caller, :kill)
    answer
  end

  # A result whose worker was killed before it could say so waits for its time to live, a minute, to be fetched.
  @patience_ms 75_000

  @doc "The regions that there are, once there are none, or after a minute and a quarter."
  @spec regions() :: [map()]
  def regions(deadline \\ System.monotonic_time(:millisecond) + @patience_ms) do
    case SharedMemory.list_regions!() do
      [] -> []
      left -> if System.monotonic_time(:millisecond) > deadline, do: left, else: again(deadline)
    end
  end

  defp again(deadline) do
    Process.sleep(50)
    regions(deadline)
  end
end
