defmodule Snakepit.SharedMemory.AdoptionTest do
  # Another VM dies, and the next start finds what it left. Alone: the application is started anew.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Config, Foreign, Registry, Table}

  @moduletag timeout: 300_000
  @moduletag :capture_log

  # Long enough for a busy machine to look and to adopt in.
  @grace 12_000

  defp vm(place, settings), do: Foreign.start([grace: @grace] ++ settings ++ place)

  defp ids(filter, place) do
    MapSet.new(SharedMemory.list_regions!(filter ++ place), & &1.id)
  end

  # A VM that owns these regions, with their names as their values.
  defp leave(place, names) do
    peer = vm(place, [])

    :ok =
      Foreign.run(peer, """
      for name <- #{inspect(names, limit: :infinity)} do
        id = Snakepit.SharedMemory.allocate_region!(4096, name: name, slots: 2)
        Snakepit.SharedMemory.write!(id, "first of " <> id)
        Snakepit.SharedMemory.write!(id, "last of " <> id)
      end
      :ok
      """)

    peer
  end

  # Until nothing is left but `kept`. Whatever goes before the grace is over is a mistake.
  defp await_end(left, kept, place, since) do
    now = ids([], place)
    elapsed = System.monotonic_time(:millisecond) - since
    gone = MapSet.difference(left, now)

    assert MapSet.subset?(kept, now)

    assert MapSet.size(gone) == 0 or elapsed >= @grace,
           "gone after #{elapsed} ms: #{Enum.at(gone, 0)}"

    if now != kept do
      assert elapsed < @grace + 30_000, "#{MapSet.size(now)} are still there"

      receive do
      after
        20 -> await_end(left, kept, place, since)
      end
    end
  end

  test "R2.4 after SIGKILL of a VM with 1,000 regions the next start adopts or cleans what it left, and no other's",
       %{place: place} do
    # Lives all the time, writes all the time, and has a janitor of its own.
    living = vm(place, cleanup_interval: 50)

    {:ok, own} =
      Foreign.run(living, """
      alias Snakepit.SharedMemory
      own = for n <- 1..50, do: SharedMemory.allocate_region!(4096, name: "living-\#{n}", slots: 2)
      for id <- own, do: SharedMemory.write!(id, "0 of " <> id)
      main = self()

      write = fn write, n ->
        for id <- own do
          {:ok, version} = SharedMemory.write(id, "\#{n} of " <> id)
          ^version = 2 * (n + 1)
          {:ok, %{orphaned: false}} = SharedMemory.get_region_info(id)
        end

        receive do
          :stop -> send(main, {:wrote, n})
        after
          1 -> write.(write, n + 1)
        end
      end

      Process.register(spawn_link(fn -> write.(write, 1) end), :writer)
      {:ok, own}
      """)

    names = for n <- 1..1000, do: "left-#{n}"
    dying = leave(place, names)

    handle =
      Foreign.run(dying, """
      Snakepit.SharedMemory.share!("a result", name: "left-sealed", owner: Process.whereis(:init))
      """)

    left = MapSet.new(["left-sealed" | names])
    own = MapSet.new(own)
    assert ids([], place) == MapSet.union(left, own)
    assert ids([orphaned: true], place) == MapSet.new()

    since = System.monotonic_time(:millisecond)
    Foreign.kill(dying)

    # The application starts again: it finds all that was left, nothing else, and keeps three.
    with_config([grace: @grace, default_timeout: nil] ++ place, fn ->
      assert ids([orphaned: true], place) == left
      assert ids([orphaned: false], place) == own

      assert {:ok, "left-1"} = SharedMemory.adopt_region("left-1")
      options = [session: "s", tags: ["found"], metadata: %{of: "before"}]
      assert {:ok, "left-2"} = SharedMemory.adopt_region("left-2", options)
      assert {:ok, "left-sealed"} = SharedMemory.adopt_region(handle)
      assert code(SharedMemory.adopt_region("living-1")) == :segment_busy
      kept = MapSet.new(["left-1", "left-2", "left-sealed"])
      assert ids([local: true], place) == kept

      await_end(left, MapSet.union(kept, own), place, since)

      assert ids([local: true], place) == kept
      assert ids([orphaned: true], place) == MapSet.new()

      for id <- ["left-1", "left-2"] do
        assert SharedMemory.read!(id) == "last of " <> id
        assert SharedMemory.get_region_info!(id).version == 4
        assert SharedMemory.write!(id, "mine") == 6
        assert SharedMemory.read!(id) == "mine"
      end

      # Its handle, made by the VM that is dead, names it as before.
      assert SharedMemory.fetch!(handle) == "a result"
      assert code(SharedMemory.write("left-sealed", "x")) == :sealed
      assert {:ok, ^handle} = SharedMemory.handle("left-sealed")

      assert [%{id: "left-2"} = info] = SharedMemory.list_regions!(tag: "found")
      assert %{metadata: %{of: "before"}, session: "s", generation: 2} = info
      assert info.owner_pid == self()
      assert {:ok, %{removed: ["left-2"]}} = SharedMemory.release_session("s")
      assert {:ok, "left-sealed"} = SharedMemory.deallocate_region(handle)
      assert code(SharedMemory.fetch(handle)) == :not_found
      assert {:ok, %{status: :ok}} = SharedMemory.health_check()
    end)

    # What was adopted went with the application; the living VM has noticed nothing.
    assert ids([], place) == own

    rounds =
      Foreign.run(living, """
      send(:writer, :stop)
      receive do: ({:wrote, n} -> n)
      """)

    assert rounds > 10
    for id <- own, do: assert(SharedMemory.read!(id, place) == "#{rounds} of " <> id)
    Foreign.stop(living)
    assert eventually(fn -> ids([], place) == MapSet.new() end)
  end

  test "R2.4 when nobody was left to see it, the grace begins with the next start", %{
    place: place,
    dir: dir
  } do
    dying = leave(place, ["left-1", "left-2"])
    Foreign.kill(dying)

    with_config([grace: 3_600_000] ++ place, fn ->
      assert eventually(fn ->
               match?({:ok, %{sweeps: n}} when n > 0, Snakepit.SharedMemory.Janitor.stats())
             end)

      assert ids([orphaned: true], place) == MapSet.new(["left-1", "left-2"])
      assert SharedMemory.adopt_region!("left-1", cleanup_policy: :manual) == "left-1"
    end)

    # Stopped properly: its own has gone, the other waits.
    assert ids([orphaned: true], place) == MapSet.new(["left-2"])

    with_config([grace: 0] ++ place, fn ->
      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end)
  end

  # A region that its writer has given up, as a program in Rust or Python may.
  defp given_up(place, name, settings \\ %{}) do
    {:ok, writer} = Native.create(native(place, name, Map.merge(%{slots: 2}, settings)))
    {:ok, _} = Native.write(writer, "given up", nil)
    {:ok, :ok} = Native.release(writer)
    name
  end

  test "an adopted region is one of this VM in every respect", %{place: place, dir: dir} do
    given_up(place, "found", %{permissions: 0o640})
    assert %{orphaned: true, owner_pid: nil} = SharedMemory.get_region_info!("found", place)
    before = :sys.get_state(Registry).ledger.usage[:node] || {0, 0}

    {{:ok, "found"}, owner} =
      in_process(fn ->
        options = [access_mode: :read_only, timeout: 3_600_000, worker: "w", tags: ["t"]]
        SharedMemory.adopt_region("found", options ++ place)
      end)

    info = SharedMemory.get_region_info!("found", place)
    assert %{orphaned: false, owner_pid: ^owner, reference_count: 1, bytes: 8} = info
    assert %{access_mode: :read_only, timeout: 3_600_000, worker: "w", tags: ["t"]} = info
    assert info.permissions == %{owner: :read_write, group: :read_only, other: :none}
    {regions, bytes} = before
    assert :sys.get_state(Registry).ledger.usage[:node] == {regions + 1, bytes + 2 * 4096}
    assert [%{operation: :adopt, pid: ^owner}] = SharedMemory.history!("found", place)
    assert SharedMemory.map_region!("found", place).access_mode == :read_only
    assert SharedMemory.with_writer!("found", place, &SharedMemory.write!(&1, "x")) == 4
    ref = SharedMemory.subscribe!("found", place)
    SharedMemory.write!("found", "y", place)
    assert_receive {:snakepit_shm, ^ref, {:changed, "found", 6}}, 30_000

    # It goes with its owner.
    kill(owner)
    assert_receive {:snakepit_shm, ^ref, {:closed, "found", _}}, 30_000
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
  end

  test "of many that adopt one region at once, one has it", %{place: place} do
    for n <- 1..20 do
      id = given_up(place, "prize-#{n}")

      answers =
        1..20
        |> Enum.map(fn _ ->
          Task.async(fn ->
            code(SharedMemory.adopt_region(id, [owner: Process.whereis(:init)] ++ place))
          end)
        end)
        |> Task.await_many(60_000)

      assert [{:ok, ^id} | refused] = Enum.sort_by(answers, &is_atom/1)
      assert Enum.uniq(refused) == [:segment_busy]
      SharedMemory.deallocate_region!(id, place)
    end
  end

  test "an adoption that is refused, or whose owner is dead, leaves the region to the next", %{
    place: place,
    namespace: namespace
  } do
    given_up(place, "left")
    adopt = fn options -> code(SharedMemory.adopt_region("left", options ++ place)) end

    assert code(SharedMemory.adopt_region("nobody", place)) == :not_found
    assert code(SharedMemory.adopt_region(:left, place)) == :invalid_argument
    assert code(SharedMemory.adopt_region("left", nonsense: 1)) == :invalid_option
    assert adopt.(slots: 2) == :invalid_option
    {:ok, config} = Config.fetch(:test)
    assert config.namespace != namespace

    {_, dead} = in_process(fn -> :ok end)
    kill(dead)
    # Adopted, or not even that, it does not stay with a process that is not there.
    _ = adopt.(owner: dead)
    assert eventually(fn -> Table.records(&(&1.target.id == "left")) == [] end)
    _ = SharedMemory.deallocate_region("left", place)

    given_up(place, "other")

    with_config([max_regions: 1], fn ->
      id = SharedMemory.allocate_region!(4096, place)
      assert code(SharedMemory.adopt_region("other", place)) == :resource_exhausted
      SharedMemory.deallocate_region!(id, place)
    end)

    with_config([max_region_size: 8192], fn ->
      given_up(place, "large", %{size: 16_384})
      assert code(SharedMemory.adopt_region("large", place)) == :resource_exhausted
    end)

    for id <- ["other", "large"] do
      assert SharedMemory.get_region_info!(id, place).orphaned
      assert SharedMemory.read!(id, place) == "given up"
      SharedMemory.deallocate_region!(id, place)
    end
  end

  test "an adoption that nobody waits for any more is undone, not removed", %{place: place} do
    given_up(place, "left")

    with_config([call_timeout: 200], fn ->
      :sys.suspend(Registry)
      answer = SharedMemory.adopt_region("left", place)
      :sys.resume(Registry)
      assert code(answer) == :timeout
      assert SharedMemory.get_region_info!("left", place).orphaned

      # As when its caller gives up just after it has come about.
      assert {:ok, "left"} = SharedMemory.adopt_region("left", place)
      assert [%{token: token, target: %{key: key}}] = Table.records()
      GenServer.cast(Registry, {:abandon, key, token})
      assert eventually(fn -> SharedMemory.get_region_info!("left", place).orphaned end)
      assert Table.records() == []
      assert SharedMemory.read!("left", place) == "given up"
      assert {:ok, "left"} = SharedMemory.adopt_region("left", place)
      assert SharedMemory.write!("left", "again", place) == 4
    end)
  end
end
