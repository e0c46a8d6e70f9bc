defmodule Snakepit.SharedMemory.AllocationTest do
  # What the options of an allocation mean, beyond the segment that it makes.
  use Snakepit.SharedMemory.Case, async: true

  defp info(id, place), do: SharedMemory.get_region_info!(id, place)

  test "R4.1 R14.3 permissions as a map are the mode of the file, and are shown", %{place: place} do
    for {map, mode} <- [
          {%{}, 0o600},
          {%{owner: :read_write, group: :read_only, other: :none}, 0o640},
          {%{group: :read_write}, 0o660},
          {%{group: :read_only, other: :read_only}, 0o644}
        ] do
      id = SharedMemory.allocate_region!(4096, [permissions: map] ++ place)
      assert Bitwise.band(File.stat!(file_of(id, place)).mode, 0o777) == mode
      default = %{owner: :read_write, group: :none, other: :none}
      assert info(id, place).permissions == Map.merge(default, map)
      SharedMemory.deallocate_region!(id, place)
    end
  end

  test "R7.1 what was given at allocation is told", %{place: place} do
    options = [
      session: "s-1",
      worker: "w-1",
      tags: ["tensor", "input"],
      timeout: 3_600_000,
      access_mode: :read_only,
      cleanup_policy: :reference_counted,
      security_level: :standard,
      metadata: %{model: "m"}
    ]

    id = SharedMemory.allocate_region!(4096, options ++ place)

    assert %{
             session: "s-1",
             worker: "w-1",
             tags: ["tensor", "input"],
             timeout: 3_600_000,
             access_mode: :read_only,
             cleanup_policy: :reference_counted,
             marked: false,
             metadata: %{model: "m"}
           } = info(id, place)

    plain = SharedMemory.allocate_region!(4096, place)

    assert %{
             session: nil,
             worker: nil,
             tags: [],
             timeout: nil,
             access_mode: nil,
             cleanup_policy: :automatic
           } = info(plain, place)

    # Counted, it would stay for its grace.
    SharedMemory.deallocate_region!(id, place)
  end

  test "refuses what an option cannot be, and says what it can", %{place: place, dir: dir} do
    for {option, value, expected} <- [
          {:permissions, %{owner: :none}, ":read_only or :none"},
          {:permissions, %{everybody: :read_only}, "a map with :owner"},
          {:timeout, 0, "a positive number of milliseconds"},
          {:timeout, :infinity, "or nil for never"},
          {:access_mode, :write, ":read_only, :read_write"},
          {:cleanup_policy, :never, ":automatic, :manual, :reference_counted"},
          {:session, :main, "a string"},
          {:worker, 1, "a string"},
          {:tags, "one", "a list of strings"},
          {:tags, [:one], "a list of strings"},
          {:tags, ["a" | "b"], "a list of strings"},
          {:security_level, :low, ":standard"}
        ] do
      assert {:error, %Error{code: :invalid_option} = error} =
               SharedMemory.allocate_region(4096, [{option, value}] ++ place)

      assert error.message =~ inspect(option)
      assert error.message =~ expected
    end

    assert {:error, error} = SharedMemory.allocate_region(4096, [timout: 5] ++ place)
    assert error.message =~ "did you mean :timeout?"
    assert TestDir.leftovers(dir) == []
  end

  test "R5.5 access_mode is the default of mappings, and only that", %{place: place} do
    id = SharedMemory.allocate_region!(4096, [access_mode: :read_only] ++ place)
    SharedMemory.write!(id, "by the owner", place)
    region = SharedMemory.map_region!(id, place)
    assert region.access_mode == :read_only
    assert code(SharedMemory.write(region, "x")) == :permission_denied
    writable = SharedMemory.map_region!(id, [access_mode: :read_write] ++ place)
    assert {:ok, 4} = SharedMemory.write(writable, "asked for")
    assert SharedMemory.read!(region) == "asked for"
  end

  describe "cleanup_policy" do
    test "R2.3 :automatic goes with its owner, though it is mapped", %{place: place, dir: dir} do
      {id, owner} = in_process(fn -> SharedMemory.allocate_region!(4096, place) end)
      region = SharedMemory.map_region!(id, place)
      kill(owner)
      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
      assert {:ok, ^id} = SharedMemory.unmap_region(region)
    end

    test "R2.2 :manual stays when its owner dies, until it is deallocated", %{
      place: place,
      dir: dir
    } do
      {ids, owner} =
        in_process(fn ->
          kept = SharedMemory.allocate_region!(4096, [cleanup_policy: :manual] ++ place)
          SharedMemory.write!(kept, "kept", place)
          {kept, SharedMemory.allocate_region!(4096, place)}
        end)

      {kept, gone} = ids
      kill(owner)
      assert eventually(fn -> code(SharedMemory.read(gone, place)) == :not_found end)
      assert %{owner_pid: ^owner, reference_count: 0, marked: false} = info(kept, place)
      assert {:ok, "kept"} = SharedMemory.read(kept, place)
      assert {:ok, 4} = SharedMemory.write(kept, "still ours", place)
      region = SharedMemory.map_region!(kept, place)
      assert %{reference_count: 1} = info(kept, place)
      SharedMemory.unmap_region!(region)
      assert [%{id: ^kept}] = SharedMemory.list_regions!([local: true] ++ place)
      SharedMemory.deallocate_region!(kept, place)
      assert TestDir.leftovers(dir) == []
    end

    test "of a region that is handed over sealed", %{place: place, dir: dir} do
      {handle, owner} =
        in_process(fn -> SharedMemory.share!("lasting", [cleanup_policy: :manual] ++ place) end)

      kill(owner)
      assert {:ok, "lasting"} = SharedMemory.fetch(handle, dir: dir)
      SharedMemory.deallocate_region!(handle, dir: dir)
    end
  end

  describe "timeout" do
    test "R11.1 an idle region is removed, whatever its policy", %{place: place, dir: dir} do
      for policy <- [:automatic, :manual, :reference_counted] do
        SharedMemory.allocate_region!(4096, [timeout: 20, cleanup_policy: policy] ++ place)
      end

      stays = SharedMemory.allocate_region!(4096, [timeout: nil] ++ place)
      assert eventually(fn -> length(SharedMemory.list_regions!(place)) == 1 end)
      assert [%{id: ^stays}] = SharedMemory.list_regions!(place)
      SharedMemory.deallocate_region!(stays, place)
      assert TestDir.leftovers(dir) == []
    end

    # A region that is not used goes first, so time enough has passed.
    defp outlives(use, place) do
      used = SharedMemory.allocate_region!(4096, [name: "used", timeout: 1_000] ++ place)
      SharedMemory.write!(used, "x", place)
      SharedMemory.seal!(used, place)
      idle = SharedMemory.allocate_region!(4096, [name: "idle", timeout: 2_000] ++ place)
      state = use.(:begin, used)

      assert eventually(fn ->
               use.({:go_on, state}, used)
               code(SharedMemory.get_region_info(idle, place)) == :not_found
             end)

      assert SharedMemory.get_region_info!(used, place).id == used
      use.({:finish, state}, used)
      assert eventually(fn -> code(SharedMemory.get_region_info(used, place)) == :not_found end)
    end

    test "a region that is mapped is not idle", %{place: place} do
      outlives(
        fn
          :begin, id -> SharedMemory.map_region!(id, place)
          {:go_on, _region}, _id -> :ok
          {:finish, region}, _id -> SharedMemory.unmap_region!(region)
        end,
        place
      )
    end

    test "a region that is read by id is not idle", %{place: place} do
      outlives(
        fn
          {:go_on, _}, id -> SharedMemory.read!(id, place)
          _, _id -> :ok
        end,
        place
      )
    end

    test "a region whose value is looked at without a copy is not idle", %{place: place} do
      outlives(
        fn
          :begin, id -> SharedMemory.handle!(id, place)
          {:go_on, handle}, _id -> SharedMemory.fetch!(handle, dir: place[:dir])
          {:finish, _}, _id -> :ok
        end,
        place
      )
    end

    test "a region that is written is not idle", %{place: place} do
      used = SharedMemory.allocate_region!(4096, [name: "used", timeout: 1_000] ++ place)
      idle = SharedMemory.allocate_region!(4096, [name: "idle", timeout: 2_000] ++ place)

      assert eventually(fn ->
               SharedMemory.write!(used, "x", place)
               code(SharedMemory.get_region_info(idle, place)) == :not_found
             end)

      assert SharedMemory.get_region_info!(used, place).id == used
      assert eventually(fn -> code(SharedMemory.get_region_info(used, place)) == :not_found end)
    end

    test "the longest timeout is waited for", %{place: place} do
      expiry = Process.whereis(Snakepit.SharedMemory.Expiry)
      options = [timeout: 3_155_760_000_000] ++ place
      id = SharedMemory.allocate_region!(4096, options)

      assert code(SharedMemory.allocate_region(4096, [timeout: 3_155_760_000_001] ++ place)) ==
               :invalid_option

      # It has been looked at.
      assert %{seen: %{}} = :sys.get_state(expiry)
      assert Process.whereis(Snakepit.SharedMemory.Expiry) == expiry
      assert SharedMemory.get_region_info!(id, place).timeout == 3_155_760_000_000
    end

    test "the timeout of a name's former region is not that of its next", %{place: place} do
      # Long enough not to end before the next line on a busy machine, and before `idle` does.
      SharedMemory.allocate_region!(4096, [name: "again", timeout: 1_000] ++ place)
      SharedMemory.deallocate_region!("again", place)
      SharedMemory.allocate_region!(4096, [name: "again", timeout: 3_600_000] ++ place)
      idle = SharedMemory.allocate_region!(4096, [timeout: 2_000] ++ place)
      assert eventually(fn -> code(SharedMemory.get_region_info(idle, place)) == :not_found end)
      assert SharedMemory.get_region_info!("again", place).timeout == 3_600_000
    end
  end
end
