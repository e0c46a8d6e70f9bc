defmodule Snakepit.SharedMemory.InspectionTest do
  use Snakepit.SharedMemory.Case, async: true

  test "R7.3 what the value is, live, by id and by mapping, of our own and of others", %{
    place: place
  } do
    id = SharedMemory.allocate_region!(4096, place)

    described =
      &Map.take(SharedMemory.get_region_info!(&1, place), [:format, :dtype, :shape, :bytes])

    nothing = %{format: nil, dtype: nil, shape: nil}
    assert described.(id) == Map.put(nothing, :bytes, 0)
    region = SharedMemory.map_region!(id, place)
    # Created beside the registry, so that it is looked at as another process's region is.
    {:ok, writer} = Native.create(native(place, "foreign"))

    for {opts, native, data, expected} <- [
          {[dtype: :f32, shape: [3, 2]], {:numpy, "<f4", [3, 2]}, <<0::192>>,
           %{format: :numpy, dtype: "<f4", shape: [3, 2], bytes: 24}},
          {[format: :arrow_ipc], :arrow_ipc, "arrow",
           Map.merge(nothing, %{format: :arrow_ipc, bytes: 5})},
          {[], nil, "raw", Map.merge(nothing, %{format: :raw, bytes: 3})}
        ] do
      SharedMemory.write!(region, data, opts)
      assert described.(id) == expected
      assert described.(region) == expected
      {:ok, _} = Native.write(writer, data, native)
      assert described.("foreign") == expected
      # Looking leaves nothing attached.
      assert SharedMemory.get_region_info!("foreign", place).reader_count == 0
    end

    {:ok, :ok} = Native.discard(writer)
  end

  test "R7.1 all that is known about a region of our own", %{place: place} do
    options = [name: "known", slots: 2, metadata: %{"any" => [:term]}] ++ place
    before = DateTime.utc_now()
    id = SharedMemory.allocate_region!(8192, options)
    assert {:ok, info} = SharedMemory.get_region_info(id, place)

    assert Map.keys(info) |> Enum.sort() ==
             ~w(access_count access_mode bytes bytes_read bytes_written cleanup_policy created_at dtype
                format generation id last_accessed marked metadata namespace orphaned owner_pid
                permissions platform_handle reader_count reads reads_by_id reference_count security_level session shape size
                slots state tags timeout version views worker writes)a

    assert %{
             id: "known",
             size: 8192,
             slots: 2,
             state: :active,
             version: 0,
             generation: 1,
             bytes: 0,
             metadata: %{"any" => [:term]},
             reference_count: 1,
             reader_count: 0
           } = info

    assert info.owner_pid == self()
    assert info.namespace == place[:namespace]
    assert info.platform_handle.writer_pid == String.to_integer(System.pid())
    assert File.exists?(Path.join(place[:dir], info.platform_handle.file))
    assert DateTime.compare(info.created_at, before) in [:gt, :eq]

    SharedMemory.write!(id, "12345", place)
    assert %{version: 2, bytes: 5} = SharedMemory.get_region_info!(id, place)
    SharedMemory.seal!(id, place)
    assert %{state: :sealed, version: 2} = SharedMemory.get_region_info!(id, place)
  end

  test "R3.1 R3.2 references are counted as they come and go", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    count = fn -> SharedMemory.get_region_info!(id, place).reference_count end
    one = SharedMemory.map_region!(id, place)
    two = SharedMemory.map_region!(id, place)
    assert count.() == 3
    # One attached reader, whoever shares it.
    assert SharedMemory.get_region_info!(id, place).reader_count == 1

    {_region, other} = in_process(fn -> SharedMemory.map_region!(id, place) end)
    assert count.() == 4
    kill(other)
    assert eventually(fn -> count.() == 3 end)
    SharedMemory.unmap_region!(one)
    SharedMemory.unmap_region!(two)
    assert count.() == 1
  end

  test "of a region of another OS process", %{place: place} do
    {:ok, writer} = Native.create(native(place, "foreign"))
    {:ok, 2} = Native.write(writer, "theirs", nil)
    info = SharedMemory.get_region_info!("foreign", place)
    assert %{owner_pid: nil, metadata: %{}, reference_count: 0, bytes: 6} = info
    region = SharedMemory.map_region!("foreign", place)
    assert %{reference_count: 1, reader_count: 1} = SharedMemory.get_region_info!(region)
    {:ok, :ok} = Native.discard(writer)
    assert code(SharedMemory.get_region_info("foreign", place)) == :not_found
  end

  test "of a mapping that has been given back", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    region = SharedMemory.map_region!(id, place)
    assert SharedMemory.get_region_info!(region).id == id
    SharedMemory.unmap_region!(region)
    assert code(SharedMemory.get_region_info(region)) == :closed
  end

  test "of nothing", %{place: place} do
    assert code(SharedMemory.get_region_info("nobody", place)) == :not_found
    assert code(SharedMemory.get_region_info(nil, place)) == :invalid_argument
    assert code(SharedMemory.get_region_info("x", [what: 1] ++ place)) == :invalid_option
  end

  describe "list_regions" do
    setup %{place: place} do
      sealed = SharedMemory.share!("x", [name: "b-sealed"] ++ place)
      SharedMemory.allocate_region!(4096, [name: "a-active"] ++ place)
      {:ok, foreign} = Native.create(native(place, "c-foreign"))
      on_exit(fn -> Native.discard(foreign) end)
      {:ok, sealed: sealed}
    end

    defp names(filter), do: Enum.map(SharedMemory.list_regions!(filter), & &1.id)

    test "sorted by name, ours and others'", %{place: place} do
      assert names(place) == ["a-active", "b-sealed", "c-foreign"]
    end

    test "says of each what get_region_info says", %{place: place} do
      for region <- SharedMemory.list_regions!(place) do
        info = SharedMemory.get_region_info!(region.id, place)

        assert Map.delete(region, :last_accessed) ==
                 Map.drop(info, [:last_accessed, :format, :dtype, :shape])
      end
    end

    test "filters, as a keyword list or a map", %{place: place} do
      assert names([state: :sealed] ++ place) == ["b-sealed"]
      assert names([state: :closed] ++ place) == []
      assert names([local: true] ++ place) == ["a-active", "b-sealed"]
      assert names([local: false] ++ place) == ["c-foreign"]
      assert names(Map.new([owner: self(), state: :active] ++ place)) == ["a-active"]
      {:ok, other} = in_process(fn -> :ok end)
      assert names([owner: other] ++ place) == []
      kill(other)
    end

    test "refuses what is no filter", %{place: place} do
      for filter <- [
            [owner: :me],
            [state: :gone],
            [local: 1],
            [tag: :x],
            [tags: "x"],
            [min_size: -1]
          ] do
        assert code(SharedMemory.list_regions(filter ++ place)) == :invalid_option
      end

      assert code(SharedMemory.list_regions(:all)) == :invalid_option
      assert code(SharedMemory.list_regions(namespace: "a/b")) == :invalid_name
    end

    test "leaves out what is broken, and does not fail over it", %{place: place, dir: dir} do
      garbage = Path.join(dir, "#{place[:namespace]}_broken.meta")
      File.write!(garbage, :crypto.strong_rand_bytes(500))
      assert names(place) == ["a-active", "b-sealed", "c-foreign"]
      assert code(SharedMemory.get_region_info("broken", place)) == :corrupted
      assert code(SharedMemory.map_region("broken", place)) == :corrupted
      File.rm!(garbage)
    end
  end

  test "garbage and cut files: the named error, the VM lives", %{place: place, dir: dir} do
    id = SharedMemory.allocate_region!(4096, [slots: 1] ++ place)
    SharedMemory.write!(id, "value", place)
    handle = SharedMemory.get_region_info!(id, place).platform_handle
    file = Path.join(dir, handle.file)
    whole = File.read!(file)
    meta = Path.join(dir, "#{place[:namespace]}_#{id}.meta")
    json = File.read!(meta)

    # Other files under the same name: ours is mapped, and stays as it is.
    File.rename!(file, file <> ".aside")

    for {content, codes} <- [
          {"", [:truncated]},
          {binary_part(whole, 0, 100), [:truncated]},
          {binary_part(whole, 0, byte_size(whole) - 4096), [:truncated]},
          {:binary.copy(<<0>>, byte_size(whole)), [:corrupted]},
          {:binary.copy(<<0xFF>>, byte_size(whole)), [:corrupted]},
          {"not a segment at all" <> whole, [:corrupted]}
        ] do
      File.write!(file, content)
      assert {:error, {attach, _, _, _}} = Native.attach(native(place, id))
      assert attach in codes
      assert code(SharedMemory.get_region_info(id, place)) in codes
    end

    File.rename!(file <> ".aside", file)

    for content <- [
          "",
          "{}",
          "null",
          "[1]",
          binary_part(json, 0, 20),
          String.replace(json, id, "x")
        ] do
      File.write!(meta, content)
      assert {:error, {:corrupted, _, _, _}} = Native.attach(native(place, id))
    end

    File.write!(meta, json)
    assert SharedMemory.read!(id, place) == "value"
  end
end
