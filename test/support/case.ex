defmodule Snakepit.SharedMemory.Case do
  @moduledoc false
  # Every test gets a namespace and a directory of its own (`place`, to be added to options), and
  # must leave no segment in it: what it did not deallocate has to go with its processes.

  use ExUnit.CaseTemplate

  alias Snakepit.SharedMemory.TestDir

  using do
    quote do
      alias Snakepit.SharedMemory
      alias Snakepit.SharedMemory.{Error, Native, Region, TestDir}
      import Snakepit.SharedMemory.Case
    end
  end

  setup context do
    unique = System.unique_integer([:positive])
    dir = TestDir.create!("#{unique}")
    place = [namespace: "t#{System.pid()}-#{unique}", dir: dir]

    # Runs when the test's process has ended, and with it what it owned.
    on_exit(fn ->
      eventually(fn -> TestDir.leftovers(dir) == [] end, context[:patience] || 30_000)
      TestDir.remove_empty!(dir)
    end)

    {:ok, place: place, dir: dir, namespace: place[:namespace]}
  end

  @doc "Waits until `condition` holds, and answers whether it does; the bound is generous."
  def eventually(condition, patience \\ 30_000) do
    deadline = System.monotonic_time(:millisecond) + patience
    wait_until(condition, deadline)
  end

  defp wait_until(condition, deadline) do
    cond do
      condition.() -> true
      System.monotonic_time(:millisecond) > deadline -> false
      true -> pause(condition, deadline)
    end
  end

  defp pause(condition, deadline) do
    receive do
    after
      5 -> wait_until(condition, deadline)
    end
  end

  @doc "Runs `fun` in a process that lives until `stop/1`; answers what `fun` did, and the process."
  def in_process(fun) do
    test = self()
    ref = make_ref()

    pid =
      spawn(fn ->
        send(test, {ref, fun.()})
        receive do: (:stop -> :ok)
      end)

    receive do
      {^ref, answer} -> {answer, pid}
    after
      60_000 -> raise "the process gave no answer"
    end
  end

  @doc "Kills a process and waits for its end."
  def kill(pid) do
    monitor = Process.monitor(pid)
    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^monitor, :process, ^pid, _reason} -> :ok
    end
  end

  @doc "Runs `fun` while the application runs with `changes` to its configuration. Not async."
  def with_config(changes, fun) do
    before = Application.get_env(:snakepit, :shared_memory)
    restart(Keyword.merge(before, changes))

    try do
      fun.()
    after
      restart(before)
    end
  end

  @doc "Starts the application anew with this configuration. Not async."
  def restart(config) do
    _ = Application.stop(:snakepit_shared_memory)
    Application.put_env(:snakepit, :shared_memory, config)
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
  end

  @doc "How many threads of this VM have this name."
  def threads(name) do
    Enum.count(Path.wildcard("/proc/self/task/*/comm"), fn comm ->
      File.read(comm) == {:ok, name <> "\n"}
    end)
  end

  @doc "The file of a region that others may be able to see."
  def file_of(id, place) do
    file = Snakepit.SharedMemory.get_region_info!(id, place).platform_handle.file
    Path.join(place[:dir], file)
  end

  @doc "The lines of this VM's memory map that name a file in `dir`."
  def mappings(dir) do
    "/proc/self/maps" |> File.read!() |> String.split("\n") |> Enum.filter(&(&1 =~ dir))
  end

  @doc "What the NIF is told of a segment called `name`, created by it outside the registry."
  def native(place, name, settings \\ %{}) do
    target = %Snakepit.SharedMemory.Target{
      id: name,
      namespace: place[:namespace],
      dir: place[:dir],
      key: name
    }

    Snakepit.SharedMemory.Target.native(target, Map.merge(%{size: 4096}, settings))
  end

  @doc "The code of an error, for one-line assertions."
  def code({:error, %Snakepit.SharedMemory.Error{code: code}}), do: code
  def code(other), do: other
end
