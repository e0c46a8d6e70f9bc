defmodule Snakepit.SharedMemory.DeadlineTest do
  # Calls to processes that do not answer. Alone, for everybody needs them.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Config, Health, Jobs, Registry, Table}

  @patience 30_000

  # While the process is suspended, and only then, nobody waits longer than 40 ms.
  defp suspended(process, fun) do
    {:ok, config} = Config.fetch(:test)
    :sys.suspend(process)
    Config.install(%{config | call_timeout: 40})

    try do
      fun.()
    after
      Config.install(config)
      :sys.resume(process)
    end
  end

  defp consistent? do
    {:ok, audit} = Registry.audit(@patience)
    Health.Bookkeeping.check({:ok, audit}) == []
  end

  defp no_message, do: assert({:messages, []} = Process.info(self(), :messages))

  test "R6.4 a suspended registry: every call that needs it says timeout, and nothing comes of it later",
       %{place: place, dir: dir} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "kept", place)
    region = SharedMemory.map_region!(id, place)
    {:ok, foreign} = Native.create(native(place, "foreign"))
    count = fn -> SharedMemory.get_region_info!(id, place).reference_count end
    assert count.() == 2

    suspended(Registry, fn ->
      for call <- [
            fn -> SharedMemory.allocate_region(4096, [name: "late"] ++ place) end,
            fn -> SharedMemory.share("late", place) end,
            fn -> SharedMemory.map_region(id, place) end,
            fn -> SharedMemory.map_region("foreign", place) end,
            fn -> SharedMemory.unmap_region(region) end,
            fn -> SharedMemory.unmap_region(id, place) end,
            fn -> SharedMemory.deallocate_region(id, place) end
          ] do
        assert {:error, %Error{code: :timeout} = error} = call.()
        assert error.message =~ "within 40 ms"
        assert error.message =~ "nothing was done"
        assert error.remedy =~ "health_check"
      end

      # What needs no registry goes on.
      assert SharedMemory.read!(id, place) == "kept"
      assert {:ok, 4} = SharedMemory.write(region, "still")
      assert count.() == 2

      assert Enum.any?(
               SharedMemory.health_check!(timeout: 40).findings,
               &(&1.check == :processes)
             )
    end)

    # All that was asked is passed over by now.
    assert consistent?()
    no_message()
    assert count.() == 2
    assert {:ok, "late"} = SharedMemory.allocate_region(4096, [name: "late"] ++ place)
    assert {:ok, ^id} = SharedMemory.unmap_region(region)
    assert SharedMemory.get_region_info!("foreign", place).reader_count == 0
    for name <- [id, "late"], do: SharedMemory.deallocate_region!(name, place)
    {:ok, :ok} = Native.discard(foreign)
    assert TestDir.leftovers(dir) == []
  end

  test "R6.4 a creation that is not done in time is undone", %{place: place, dir: dir} do
    suspended(Jobs.Supervisor, fn ->
      assert {:error, %Error{code: :timeout, region: "slow"} = error} =
               SharedMemory.allocate_region(4096, [name: "slow"] ++ place)

      assert error.message =~ "given up"
      # The registry waits for the supervisor of the jobs, for a while; it has not looked at this.
      assert code(SharedMemory.allocate_region(4096, place)) == :timeout
    end)

    # Given up, and what had been begun is undone.
    assert eventually(fn -> Table.records() == [] end)
    assert eventually(fn -> Task.Supervisor.children(Jobs.Supervisor) == [] end)
    assert TestDir.leftovers(dir) == []
    assert consistent?()
    no_message()
    assert {:ok, "slow"} = SharedMemory.allocate_region(4096, [name: "slow"] ++ place)
    assert SharedMemory.get_region_info!("slow", place).owner_pid == self()
    SharedMemory.deallocate_region!("slow", place)
  end

  test "R6.4 a registry that is away: calls wait no longer than they are allowed", context do
    %{place: place} = context
    id = SharedMemory.allocate_region!(4096, place)
    region = SharedMemory.map_region!(id, place)
    supervisor = Snakepit.SharedMemory.Supervisor

    suspended(supervisor, fn ->
      kill(Process.whereis(Registry))
      started = System.monotonic_time(:millisecond)

      for call <- [
            fn -> SharedMemory.allocate_region(4096, place) end,
            fn -> SharedMemory.deallocate_region(id, place) end,
            fn -> SharedMemory.unmap_region(region) end
          ] do
        assert {:error, %Error{code: :timeout} = error} = call.()
        assert error.message =~ "within 40 ms"
      end

      # Much less than the ten seconds that a registry may take to be back.
      assert System.monotonic_time(:millisecond) - started < 5_000
    end)

    assert {:ok, ^id} = SharedMemory.unmap_region(region)
    assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)
  end

  test "R6.4 a suspended supervisor of the jobs: the registry does not wait for it for ever",
       context do
    %{place: place, dir: dir} = context
    :sys.suspend(Jobs.Supervisor)

    try do
      assert {:ok, id} = SharedMemory.allocate_region(4096, place)
      assert {:ok, 2} = SharedMemory.write(id, "here", place)
      assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)
    after
      :sys.resume(Jobs.Supervisor)
    end

    # What it begins now has been done already.
    assert eventually(fn -> Task.Supervisor.children(Jobs.Supervisor) == [] end)
    assert TestDir.leftovers(dir) == []
    assert consistent?()
    no_message()
  end

  test "a creation that was done just too late is undone, and no other of that name", context do
    %{place: place} = context
    id = SharedMemory.allocate_region!(4096, [name: "twice"] ++ place)
    [record] = for record <- Table.records(), record.target.id == id, do: record
    SharedMemory.deallocate_region!(id, place)
    SharedMemory.allocate_region!(4096, [name: "twice"] ++ place)

    GenServer.cast(Registry, {:abandon, record.target.key, record.token})
    assert consistent?()
    assert {:ok, 2} = SharedMemory.write(id, "here", place)

    [record] = for record <- Table.records(), record.target.id == id, do: record
    GenServer.cast(Registry, {:abandon, record.target.key, record.token})
    assert consistent?()
    assert code(SharedMemory.write(id, "gone", place)) == :not_found
    assert eventually(fn -> TestDir.leftovers(place[:dir]) == [] end)
  end

  test "R6.4 a removal that is not done in time goes on", %{place: place, dir: dir} do
    id = SharedMemory.allocate_region!(4096, place)

    suspended(Jobs.Supervisor, fn ->
      assert {:error, %Error{code: :timeout, region: ^id} = error} =
               SharedMemory.deallocate_region(id, place)

      assert error.message =~ "goes on"
    end)

    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    assert consistent?()
    no_message()
  end
end
