defmodule Snakepit.SharedMemory.LifecycleTest do
  use Snakepit.SharedMemory.Case, async: true

  describe "allocate_region" do
    test "R2.1 generates ids that differ, and knows each region by its own", %{place: place} do
      ids = for _ <- 1..20, do: SharedMemory.allocate_region!(4096, place)
      assert length(Enum.uniq(ids)) == 20
      assert Enum.all?(ids, &(&1 =~ ~r/\Ashm_\d+_[0-9a-f]{16}\z/))
      assert Enum.map(SharedMemory.list_regions!(place), & &1.id) == Enum.sort(ids)
      for id <- ids, do: assert(%{id: ^id} = SharedMemory.get_region_info!(id, place))
    end

    test "R14.4 takes every option as a keyword list or a map", %{place: place} do
      options = [
        name: "all-options",
        owner: self(),
        metadata: %{unit: "K"},
        slots: 3,
        max_readers: 10,
        integrity: :crc32c,
        notify: false,
        timestamps: :precise,
        reserve: :lazy,
        permissions: 0o640,
        schema_id: 0xFFFF_FFFF_FFFF_FFFF
      ]

      assert {:ok, "all-options"} = SharedMemory.allocate_region(8192, options ++ place)
      assert {:ok, info} = SharedMemory.get_region_info("all-options", place)
      assert %{slots: 3, size: 8192, metadata: %{unit: "K"}} = info
      file = Path.join(place[:dir], info.platform_handle.file)
      assert Bitwise.band(File.stat!(file).mode, 0o777) == 0o640
      assert {:ok, 2} = SharedMemory.write("all-options", "checked", place)
      assert {:ok, "checked"} = SharedMemory.read("all-options", place)

      again = Map.new(Keyword.put(options ++ place, :name, "as-map"))
      assert {:ok, "as-map"} = SharedMemory.allocate_region(4096, again)
    end

    test "refuses invalid sizes with the nearest valid one", %{place: place, dir: dir} do
      for {size, nearest} <- [
            {0, 4096},
            {-1, 4096},
            {1, 4096},
            {4095, 4096},
            {4097, 8192},
            {0x4000_0001, 0x4000_0000},
            {0x1_0000_0000_0000_0000_0000, 0x4000_0000}
          ] do
        assert {:error, %Error{code: :invalid_size} = error} =
                 SharedMemory.allocate_region(size, place)

        assert error.remedy == "ask for #{nearest} bytes", "for #{size}: #{error.remedy}"
      end

      for size <- [nil, "4096", 4096.0, :big, self()] do
        assert code(SharedMemory.allocate_region(size, place)) == :invalid_option
      end

      assert TestDir.leftovers(dir) == []
    end

    test "refuses invalid names before a file is touched", %{place: place, dir: dir} do
      long = String.duplicate("x", 129)

      for name <- ["", ".hidden", "a/b", "../up", "a b", "ü", "a\0b", long, "*", "a\n"] do
        assert code(SharedMemory.allocate_region(4096, [name: name] ++ place)) == :invalid_name,
               inspect(name)
      end

      for name <- [:atom, 1, <<255>>, ~c"list"] do
        assert code(SharedMemory.allocate_region(4096, [name: name] ++ place)) == :invalid_option
      end

      bad = Keyword.put(place, :namespace, "under_score")
      assert code(SharedMemory.allocate_region(4096, bad)) == :invalid_name
      assert File.ls!(dir) == []
      longest = String.duplicate("x", 128)
      assert {:ok, ^longest} = SharedMemory.allocate_region(4096, [name: longest] ++ place)
    end

    test "refuses options out of range and says which", %{place: place, dir: dir} do
      for {option, value} <- [
            slots: 0,
            slots: 65,
            max_readers: 0,
            max_readers: 16_385,
            permissions: 0o1000,
            permissions: 0o400,
            integrity: :md5,
            timestamps: true,
            reserve: nil,
            notify: 1,
            schema_id: -1,
            schema_id: 0x1_0000_0000_0000_0000,
            metadata: [],
            owner: :me
          ] do
        assert {:error, %Error{code: :invalid_option} = error} =
                 SharedMemory.allocate_region(4096, [{option, value}] ++ place)

        assert error.message =~ Atom.to_string(option)
      end

      assert TestDir.leftovers(dir) == []
    end

    test "refuses a name that is taken, here or by another process", %{place: place} do
      segment = native(place, "theirs")
      {:ok, writer} = Native.create(segment)

      assert code(SharedMemory.allocate_region(4096, [name: "theirs"] ++ place)) ==
               :already_exists

      assert {:ok, :ok} = Native.discard(writer)

      assert {:ok, "ours"} = SharedMemory.allocate_region(4096, [name: "ours"] ++ place)
      assert code(SharedMemory.allocate_region(4096, [name: "ours"] ++ place)) == :already_exists
      assert {:ok, 2} = SharedMemory.write("ours", "still there", place)
      # The name is free again once its region is gone, and the failed attempts hold nothing.
      assert {:ok, "ours"} = SharedMemory.deallocate_region("ours", place)
      assert {:ok, "ours"} = SharedMemory.allocate_region(4096, [name: "ours"] ++ place)
    end

    test "exactly one of many concurrent creators wins", %{place: place} do
      options = [name: "race", owner: self()] ++ place

      answers =
        1..50
        |> Task.async_stream(fn _ -> code(SharedMemory.allocate_region(4096, options)) end,
          max_concurrency: 50
        )
        |> Enum.map(fn {:ok, answer} -> answer end)

      assert Enum.count(answers, &(&1 == {:ok, "race"})) == 1
      assert Enum.count(answers, &(&1 == :already_exists)) == 49
    end

    test "a directory that is not there is a named error", %{place: place} do
      nowhere = Keyword.put(place, :dir, Path.join(place[:dir], "nowhere"))
      assert code(SharedMemory.allocate_region(4096, nowhere)) == :io
      assert code(SharedMemory.map_region("x", nowhere)) == :not_found
      assert code(SharedMemory.list_regions(nowhere)) == :io
    end

    test "names that are prefixes of one another are different regions", %{place: place} do
      for name <- ["sensor", "sensor_data", "sensor.data"] do
        SharedMemory.allocate_region!(4096, [name: name] ++ place)
        SharedMemory.write!(name, name, place)
      end

      assert {:ok, "sensor"} = SharedMemory.deallocate_region("sensor", place)
      assert code(SharedMemory.read("sensor", place)) == :not_found
      assert SharedMemory.read!("sensor_data", place) == "sensor_data"
      assert SharedMemory.read!("sensor.data", place) == "sensor.data"
    end
  end

  describe "map_region" do
    test "R5.5 by id: read-write for our own, read-only when asked", %{place: place} do
      id = SharedMemory.allocate_region!(4096, place)
      assert {:ok, %Region{id: ^id, size: 4096} = region} = SharedMemory.map_region(id, place)
      assert region.access_mode == :read_write
      assert region.mapped_by == self()
      assert {:ok, 2} = SharedMemory.write(region, "one")

      read_only = SharedMemory.map_region!(id, [access_mode: :read_only] ++ place)
      assert SharedMemory.read!(read_only) == "one"
      assert {:error, error} = SharedMemory.write(read_only, "two")
      assert error.code == :permission_denied
      assert error.remedy =~ "access_mode"
    end

    test "R5.2 mappings are closed each on its own", %{place: place} do
      id = SharedMemory.allocate_region!(4096, place)
      SharedMemory.write!(id, "shared", place)
      [first, second] = for _ <- 1..2, do: SharedMemory.map_region!(id, place)

      assert {:ok, ^id} = SharedMemory.unmap_region(first)
      assert code(SharedMemory.read(first)) == :closed
      assert SharedMemory.read!(second) == "shared"
      assert SharedMemory.read!(id, place) == "shared"
    end

    test "of another process's region: read-only, and busy for writing", %{place: place} do
      {:ok, writer} = Native.create(native(place, "foreign"))
      {:ok, 2} = Native.write(writer, "theirs", nil)

      region = SharedMemory.map_region!("foreign", place)
      assert region.access_mode == :read_only
      assert SharedMemory.read!(region) == "theirs"
      assert code(SharedMemory.write(region, "mine")) == :permission_denied

      for _ <- 1..3 do
        assert code(SharedMemory.map_region("foreign", [access_mode: :read_write] ++ place)) ==
                 :segment_busy
      end

      # A refused claim leaves no reader counted: only the region that is mapped.
      assert {:ok, %{reader_count: 1}} = SharedMemory.get_region_info("foreign", place)

      assert code(SharedMemory.write("foreign", "mine", place)) == :not_found

      # The writer hands over; the mapping takes the claim and gives it back when it ends.
      {:ok, :ok} = Native.release(writer)
      writable = SharedMemory.map_region!("foreign", [access_mode: :read_write] ++ place)
      assert {:ok, 4} = SharedMemory.write(writable, "taken over")
      assert SharedMemory.read!(region) == "taken over"
      assert {:ok, "foreign"} = SharedMemory.unmap_region(writable)
      assert {:ok, writer} = Native.attach_writer(native(place, "foreign"))
      assert {:ok, :ok} = Native.discard(writer)
    end

    test "by name finds the new segment after the old one was removed", %{place: place} do
      {:ok, old} = Native.create(native(place, "again"))
      {:ok, 2} = Native.write(old, "old", nil)
      before = SharedMemory.map_region!("again", place)
      {:ok, :ok} = Native.discard(old)

      {:ok, new} = Native.create(native(place, "again"))
      {:ok, 2} = Native.write(new, "new", nil)
      assert SharedMemory.read!(SharedMemory.map_region!("again", place)) == "new"
      assert SharedMemory.read!(before) == "old"
      {:ok, :ok} = Native.discard(new)
    end

    test "by handle, and only that very region", %{place: place} do
      handle = SharedMemory.share!("value", [name: "by-handle"] ++ place)
      dir = [dir: place[:dir]]
      assert %Region{id: "by-handle"} = region = SharedMemory.map_region!(handle, dir)
      assert SharedMemory.read!(region) == "value"

      SharedMemory.deallocate_region!(handle, dir)
      later = SharedMemory.share!("another", [name: "by-handle"] ++ place)
      assert code(SharedMemory.map_region(handle, dir)) in [:invalid_handle, :not_found]
      assert code(SharedMemory.deallocate_region(handle, dir)) in [:invalid_handle, :not_found]
      assert SharedMemory.read!(later, dir) == "another"
    end

    test "unknown ids and things that are no region", %{place: place} do
      assert code(SharedMemory.map_region("nobody", place)) == :not_found
      assert code(SharedMemory.map_region("", place)) == :invalid_name
      assert code(SharedMemory.map_region("../x", place)) == :invalid_name

      for thing <- [nil, :id, 1, self(), make_ref(), %{}, [], {:ok, "id"}, fn -> :ok end] do
        assert code(SharedMemory.map_region(thing, place)) == :invalid_argument
      end

      assert code(SharedMemory.map_region("x", [access_mode: :write] ++ place)) == :invalid_option
    end
  end

  describe "unmap_region" do
    test "R3.5 twice, by a stranger, or without a mapping: a named error and no change", %{
      place: place
    } do
      id = SharedMemory.allocate_region!(4096, place)
      SharedMemory.write!(id, "x", place)
      region = SharedMemory.map_region!(id, place)

      {answer, stranger} = in_process(fn -> SharedMemory.unmap_region(region) end)
      assert code(answer) == :not_mapped
      kill(stranger)
      assert SharedMemory.read!(region) == "x"
      assert SharedMemory.get_region_info!(id, place).reference_count == 2

      assert {:ok, ^id} = SharedMemory.unmap_region(region)
      assert code(SharedMemory.unmap_region(region)) == :not_mapped
      assert code(SharedMemory.unmap_region(id, place)) == :not_mapped
      assert SharedMemory.get_region_info!(id, place).reference_count == 1
    end

    test "by id takes one mapping of the caller", %{place: place} do
      id = SharedMemory.allocate_region!(4096, place)
      for _ <- 1..2, do: SharedMemory.map_region!(id, place)
      assert {:ok, ^id} = SharedMemory.unmap_region(id, place)
      assert {:ok, ^id} = SharedMemory.unmap_region(id, place)
      assert code(SharedMemory.unmap_region(id, place)) == :not_mapped
    end

    test "binaries on the mapping stay valid", %{place: place} do
      handle = SharedMemory.share!("lasting", place)
      region = SharedMemory.map_region!(handle, dir: place[:dir])
      binary = SharedMemory.binary!(region)
      SharedMemory.unmap_region!(region)
      SharedMemory.deallocate_region!(handle, dir: place[:dir])
      assert binary == "lasting"
    end
  end

  describe "deallocate_region" do
    test "removes the files at once, whoever has it mapped", %{place: place, dir: dir} do
      id = SharedMemory.allocate_region!(4096, place)
      SharedMemory.write!(id, "kept", place)
      region = SharedMemory.map_region!(id, place)

      assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)
      assert TestDir.leftovers(dir) == []
      assert SharedMemory.read!(region) == "kept"
      assert code(SharedMemory.write(region, "more")) == :closed
      assert code(SharedMemory.read(id, place)) == :not_found
      assert code(SharedMemory.write(id, "more", place)) == :not_found
      assert code(SharedMemory.deallocate_region(id, place)) == :not_found
      assert {:ok, ^id} = SharedMemory.unmap_region(region)
    end

    test "by any process, by mapping, and of another OS process's segment", %{
      place: place,
      dir: dir
    } do
      id = SharedMemory.allocate_region!(4096, place)
      {answer, other} = in_process(fn -> SharedMemory.deallocate_region(id, place) end)
      assert answer == {:ok, id}
      kill(other)

      id = SharedMemory.allocate_region!(4096, place)
      region = SharedMemory.map_region!(id, place)
      assert {:ok, ^id} = SharedMemory.deallocate_region(region)

      {:ok, writer} = Native.create(native(place, "foreign"))
      assert {:ok, "foreign"} = SharedMemory.deallocate_region("foreign", place)
      assert {:error, {:closed, _, _, _}} = Native.write(writer, "x", nil)
      assert TestDir.leftovers(dir) == []
    end

    test "leaves files of others alone", %{place: place, dir: dir, namespace: namespace} do
      notes = Path.join(dir, "#{namespace}_notes.txt")
      File.write!(notes, "mine")
      id = SharedMemory.allocate_region!(4096, [name: "notes.txt"] ++ place)
      SharedMemory.deallocate_region!(id, place)
      assert File.read!(notes) == "mine"
      File.rm!(notes)
    end
  end

  test "R12.1 1,000 regions at once, found by id, all gone in the end", %{place: place, dir: dir} do
    ids =
      for n <- 1..1000,
          do: SharedMemory.allocate_region!(4096, [name: "r#{n}", slots: 1] ++ place)

    for {id, n} <- Enum.with_index(ids), do: SharedMemory.write!(id, <<n::32>>, place)

    assert length(SharedMemory.list_regions!(place)) == 1000
    assert for(id <- ids, do: SharedMemory.read!(id, place)) == for(n <- 0..999, do: <<n::32>>)

    ids
    |> Task.async_stream(&SharedMemory.deallocate_region!(&1, place), max_concurrency: 8)
    |> Stream.run()

    assert TestDir.leftovers(dir) == []
    assert SharedMemory.list_regions!(place) == []
  end

  test "every function has a twin that raises", %{place: place} do
    assert_raise Error, ~r/not found/, fn -> SharedMemory.map_region!("none", place) end
    assert_raise Error, ~r/not found/, fn -> SharedMemory.read!("none", place) end
    assert_raise Error, fn -> SharedMemory.allocate_region!(1, place) end
    assert_raise Error, fn -> SharedMemory.adopt_region!("none", place) end
    assert_raise Error, fn -> SharedMemory.unmap_region!("none", place) end
    assert_raise Error, fn -> SharedMemory.deallocate_region!("none", place) end
    assert_raise Error, fn -> SharedMemory.write!("none", "x", place) end
    assert_raise Error, fn -> SharedMemory.seal!("none", place) end
    assert_raise Error, fn -> SharedMemory.binary!("none", place) end
    assert_raise Error, fn -> SharedMemory.share!(:none, place) end
    assert_raise Error, fn -> SharedMemory.fetch!(%{}, place) end
    assert_raise Error, fn -> SharedMemory.get_region_info!("none", place) end
    assert_raise Error, fn -> SharedMemory.list_regions!(nothing: 1) end
    assert_raise Error, fn -> SharedMemory.subscribe!("none", place) end
    assert_raise Error, fn -> SharedMemory.set_active!(make_ref(), true) end
    assert_raise Error, fn -> SharedMemory.unsubscribe!(make_ref()) end
  end
end
