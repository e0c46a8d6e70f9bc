defmodule Snakepit.SharedMemory.MemoryTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.{Config, Memory}

  @mib 1024 * 1024
  @size 8 * @mib

  setup %{dir: dir} do
    {:ok, machine} = Native.capabilities(dir)
    {:ok, machine: machine}
  end

  defp pages(region, place) do
    SharedMemory.get_region_info!(region, place ++ [pages: true]).pages
  end

  defp allocate(size, options, place) do
    SharedMemory.allocate_region(size, [slots: 1] ++ options ++ place)
  end

  defp gone(id, place), do: SharedMemory.deallocate_region!(id, place)

  test "huge pages that are required are there, or the region is refused by name", context do
    %{place: place, machine: machine} = context

    for asked <- [true, :require] do
      case allocate(@size, [huge_pages: asked], place) do
        {:ok, id} ->
          found = pages(id, place)
          assert found.huge_asked
          assert found.huge == found.huge_possible and found.huge >= @size
          {:ok, _} = SharedMemory.write(id, :binary.copy("x", @size), place)
          assert byte_size(SharedMemory.read!(id, place)) == @size
          gone(id, place)

        {:error, error} ->
          refute machine.huge_pages_possible
          assert error.code in [:invalid_option, :resource_exhausted]
          assert error.message =~ "huge"
          assert error.remedy =~ ~r/value|memory/
      end
    end
  end

  test "where there is no room for one, required ones are refused and preferred ones told",
       %{place: place} do
    for options <- [[huge_pages: true], [huge_pages: :require, reserve: :lazy]] do
      assert {:error, %Error{code: :invalid_option} = error} = allocate(4096, options, place)
      assert error.message =~ "huge_pages"
    end

    {:ok, id} = allocate(4096, [huge_pages: :prefer], place)
    assert %{huge_asked: true, huge: 0, huge_possible: 0} = pages(id, place)
    refute Map.has_key?(SharedMemory.get_region_info!(id, place), :pages)
    gone(id, place)
  end

  test "a large value is shared in huge pages where there are some", context do
    %{place: place, machine: machine} = context

    for {bytes, options, asked} <- [
          {@size, [], true},
          {@size, [huge_pages: false], false},
          {@size, [reserve: :lazy], false},
          {@mib, [], false}
        ] do
      handle = SharedMemory.share!(:binary.copy("x", bytes), options ++ place)
      found = pages(handle, place)
      assert found.huge_asked == asked
      if asked and machine.huge_pages_possible, do: assert(found.huge > 0)
      gone(handle, place)
    end
  end

  test "the configuration prefers them for every region, and an option overrules it" do
    {:ok, plain} = Config.new([])
    configured = put_in(plain.platform_options.linux.use_hugepages, true)
    options = %{prefault: nil, lock_memory: nil, numa: nil}

    for {config, asked, told} <- [
          {plain, nil, nil},
          {plain, true, :require},
          {configured, nil, :prefer},
          {configured, false, nil},
          {configured, :require, :require}
        ] do
      options = Map.put(options, :huge_pages, asked)
      assert %{huge_pages: ^told} = Memory.to_create(options, config)
    end
  end

  test "pages are mapped when a region is allocated, and when it is mapped", %{place: place} do
    assert {:error, %Error{code: :invalid_option} = error} =
             allocate(@mib, [prefault: true, reserve: :lazy], place)

    assert error.message =~ "prefault"
    {:ok, id} = allocate(@mib, [prefault: true], place)
    {:ok, _} = SharedMemory.write(id, "value", place)
    {:ok, mapping} = SharedMemory.map_region(id, [prefault: true] ++ place)
    assert mapping.access_mode == :read_write
    assert SharedMemory.read!(mapping) == "value"
    {:ok, 4} = SharedMemory.write(mapping, "again")
    assert SharedMemory.read!(mapping) == "again"
    assert SharedMemory.get_region_info!(id, place).reader_count == 1
    {:ok, ^id} = SharedMemory.unmap_region(mapping)
    assert eventually(fn -> SharedMemory.get_region_info!(id, place).reader_count == 0 end)
    gone(id, place)
  end

  test "memory is locked, or the limit is named", %{place: place} do
    for {size, options} <- [{4096, [max_readers: 1]}, {@size, []}] do
      case allocate(size, [lock_memory: true] ++ options, place) do
        {:ok, id} ->
          {:ok, mapping} = SharedMemory.map_region(id, [lock_memory: true] ++ place)
          {:ok, _} = SharedMemory.unmap_region(mapping)
          gone(id, place)

        {:error, error} ->
          assert error.code == :resource_exhausted
          assert error.message =~ "locked memory"
          assert error.remedy =~ "RLIMIT_MEMLOCK"
      end
    end
  end

  test "R12.4 pages come from the nodes that are named", %{place: place} do
    {:ok, %{numa_nodes: [first | _]}} = SharedMemory.Platform.Linux.capabilities(place[:dir])

    for {numa, policy} <- [
          {first, "bind:#{first}"},
          {[first], "bind:#{first}"},
          {{:interleave, [first]}, "interleave:#{first}"},
          {:interleave, "interleave:"}
        ] do
      case allocate(@mib, [numa: numa, prefault: true], place) do
        {:ok, id} ->
          found = pages(id, place)
          assert String.starts_with?(found.numa_policy, policy)
          if policy != "interleave:", do: assert(found.nodes == %{first => found.resident})
          gone(id, place)

        {:error, error} ->
          # A kernel without NUMA, or a container that forbids it.
          assert error.code in [:invalid_option, :permission_denied]
          IO.puts("NOT RUN: numa #{inspect(numa)}: #{error.message}")
      end
    end
  end

  test "nodes that are not there, and options that are none, are named", %{place: place} do
    for bad <- [4095, [0, 4095], {:interleave, [4095]}, [], -1, "0", {:bind, [0]}, [:a]] do
      assert {:error, %Error{code: :invalid_option} = error} = allocate(4096, [numa: bad], place)
      assert error.message =~ "numa"
    end

    for bad <- [[huge_pages: :always], [prefault: 1], [lock_memory: :yes]] do
      [{name, _}] = bad
      assert {:error, %Error{code: :invalid_option} = error} = allocate(4096, bad, place)
      assert error.message =~ inspect(name)
    end
  end
end
