defmodule Snakepit.SharedMemory.RegistryTest do
  # Kills the registry and its helpers, on which every other test depends.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Expiry, Jobs, Registry, Table}

  defp restarted(name, old) do
    eventually(fn ->
      case Process.whereis(name) do
        nil -> false
        ^old -> false
        pid -> match?(%Registry{}, :sys.get_state(pid)) or name != Registry
      end
    end)
  end

  test "R11.2 what a process owned goes when it dies, at once and completely", %{
    place: place,
    dir: dir
  } do
    {ids, owner} =
      in_process(fn ->
        for n <- 1..20, do: SharedMemory.allocate_region!(4096, [name: "owned#{n}"] ++ place)
      end)

    assert length(SharedMemory.list_regions!(place)) == 20
    kill(owner)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    for id <- ids, do: assert(code(SharedMemory.read(id, place)) == :not_found)
    assert eventually(fn -> mappings(dir) |> Enum.filter(&(&1 =~ "owned")) == [] end)
  end

  test "an ordinary end of the owner counts as well", %{place: place, dir: dir} do
    Task.async(fn -> SharedMemory.allocate_region!(4096, place) end) |> Task.await()
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
  end

  test "what a process had mapped is given back when it dies", %{place: place, dir: dir} do
    {:ok, writer} = Native.create(native(place, "foreign"))
    {:ok, 2} = Native.write(writer, "theirs", nil)
    {region, reader} = in_process(fn -> SharedMemory.map_region!("foreign", place) end)
    # Handed to us, it works as long as the one who mapped it lives.
    assert SharedMemory.read!(region) == "theirs"
    kill(reader)
    assert eventually(fn -> code(SharedMemory.read(region)) == :closed end)
    assert SharedMemory.get_region_info!("foreign", place).reference_count == 0
    assert eventually(fn -> SharedMemory.get_region_info!("foreign", place).reader_count == 0 end)
    {:ok, :ok} = Native.discard(writer)
    assert eventually(fn -> mappings(dir) |> Enum.filter(&(&1 =~ "foreign")) == [] end)
  end

  test "an owner that dies while its regions are being created leaves none", %{
    place: place,
    dir: dir
  } do
    for n <- 1..100 do
      pid =
        spawn(fn ->
          for k <- 1..20, do: SharedMemory.allocate_region!(4096, [name: "r#{n}-#{k}"] ++ place)
        end)

      # Somewhere in the middle of it, at a different place each time.
      for _ <- 1..(n * 20), do: :erlang.yield()
      kill(pid)
    end

    # The last one's may be created only now, to be refused and removed again.
    assert eventually(fn ->
             SharedMemory.list_regions!(place) == [] and TestDir.leftovers(dir) == []
           end)
  end

  test "regions for an owner that is dead already", %{place: place, dir: dir} do
    {:ok, dead} = in_process(fn -> :ok end)
    kill(dead)
    answer = SharedMemory.allocate_region(4096, [owner: dead] ++ place)
    assert code(answer) == :closed or match?({:ok, _}, answer)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
  end

  test "R3.4 counts are right when many processes map and die at once", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    mapped = for _ <- 1..500, do: in_process(fn -> SharedMemory.map_region!(id, place) end)
    assert SharedMemory.get_region_info!(id, place).reference_count == 501
    {dying, living} = Enum.split(mapped, 300)
    for {_region, pid} <- dying, do: Process.exit(pid, :kill)

    assert eventually(fn -> SharedMemory.get_region_info!(id, place).reference_count == 201 end)
    for {_region, pid} <- living, do: Process.exit(pid, :kill)
    assert eventually(fn -> SharedMemory.get_region_info!(id, place).reference_count == 1 end)
  end

  test "R8.3 a crash of the registry loses no region and no count", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "kept", place)
    region = SharedMemory.map_region!(id, place)
    {other, other_pid} = in_process(fn -> SharedMemory.allocate_region!(4096, place) end)

    for _ <- 1..3 do
      registry = Process.whereis(Registry)
      kill(registry)
      # Reads do not go through it.
      assert SharedMemory.read!(region) == "kept"
      assert SharedMemory.read!(id, place) == "kept"
      assert restarted(Registry, registry)
    end

    assert %{reference_count: 2} = SharedMemory.get_region_info!(id, place)
    assert length(SharedMemory.list_regions!(place)) == 2
    assert {:ok, ^id} = SharedMemory.unmap_region(region)
    assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)

    # The new registry watches the owners of old.
    kill(other_pid)
    assert eventually(fn -> code(SharedMemory.read(other, place)) == :not_found end)
  end

  test "creations that a crash of the registry interrupts leave nothing half-made", %{
    place: place,
    dir: dir
  } do
    for n <- 1..20 do
      callers =
        for k <- 1..10 do
          Task.async(fn ->
            code(SharedMemory.allocate_region(4096, [name: "c#{n}-#{k}"] ++ place))
          end)
        end

      for _ <- 1..(n * 5), do: :erlang.yield()
      registry = Process.whereis(Registry)
      if registry, do: kill(registry)

      for answer <- Task.await_many(callers) do
        assert match?({:ok, _}, answer) or answer in [:closed, :not_started]
      end

      assert restarted(Registry, registry)
      # Beyond so many crashes in five seconds the supervisor would give up.
      supervisor_forgives()
    end

    # The tasks, which owned what they got, have ended.
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
  end

  # Starts the application anew, so that the crashes of one round do not count for the next.
  defp supervisor_forgives do
    capture_log(fn ->
      :ok = Application.stop(:snakepit_shared_memory)
      {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    end)
  end

  test "a crash of the jobs' supervisor", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    jobs = Process.whereis(Jobs.Supervisor)
    kill(jobs)
    assert restarted(Jobs.Supervisor, jobs)
    assert eventually(fn -> Process.whereis(Registry) != nil end)
    assert {:ok, second} = SharedMemory.allocate_region(4096, place)
    assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)
    assert {:ok, ^second} = SharedMemory.deallocate_region(second, place)
  end

  test "messages and calls of strangers are logged and change nothing", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    registry = Process.whereis(Registry)

    log =
      capture_log(fn ->
        send(registry, :hello)
        send(registry, {:DOWN, make_ref(), :process, spawn(fn -> :ok end), :normal})
        # That the owner has died is believed of nobody but the VM.
        send(registry, {:DOWN, make_ref(), :process, self(), :killed})
        send(registry, {:waited, 0})
        send(registry, {:waited, :for, :nothing})
        strange(Expiry)
        GenServer.cast(registry, :what)
        assert {:error, :unexpected} = GenServer.call(registry, :what)
        assert :refused = GenServer.call(registry, {:done, make_ref(), {:ok, make_ref()}})
      end)

    assert log =~ "unexpected"
    assert Process.whereis(Registry) == registry
    assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)
  end

  test "a call from the registry's own process is answered, not waited for" do
    test = self()

    :sys.replace_state(Registry, fn state ->
      send(test, {:answer, Registry.unmap(make_ref(), :unmap_region)})
      state
    end)

    assert_received {:answer, {:error, %Error{code: :closed, operation: :unmap_region}}}
  end

  defp strange(name) do
    pid = Process.whereis(name)

    for message <- [
          :hello,
          {:idle, "nobody", make_ref()},
          {:grace, "nobody", 0, true},
          {:DOWN, make_ref(), :process, self(), :killed}
        ] do
      send(pid, message)
    end

    GenServer.cast(pid, :what)
    GenServer.cast(pid, {:watch, "nobody"})
    assert {:error, :unexpected} = GenServer.call(pid, :what)
    assert Process.whereis(name) == pid
  end

  test "nothing is kept of processes that hold nothing any more", %{place: place} do
    empty? = fn ->
      state = :sys.get_state(Registry)

      {state.ledger.processes, state.ledger.usage, state.jobs, state.monitors} ==
        {%{}, %{}, %{}, %{}}
    end

    # What earlier tests held is on its way out.
    assert eventually(empty?)

    for _ <- 1..50 do
      id = SharedMemory.allocate_region!(4096, place)
      SharedMemory.unmap_region!(SharedMemory.map_region!(id, place))
      SharedMemory.deallocate_region!(id, place)
      assert code(SharedMemory.allocate_region(4096, [name: ".x"] ++ place)) == :invalid_name
    end

    assert empty?.()
    assert Table.all_mappings() == []
  end
end
