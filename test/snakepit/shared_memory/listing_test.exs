defmodule Snakepit.SharedMemory.ListingTest do
  # The listing of the application's own place, so the application is started in that of each test.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Clock, Foreign, Listing, Target}

  setup %{place: place} do
    before = Application.get_env(:snakepit, :shared_memory)
    # Without a pool, which keeps what was removed for a while.
    restart(Keyword.merge(before, [pool_max_bytes: 0] ++ place))
    on_exit(fn -> restart(before) end)
  end

  defp ids(filter \\ []), do: for(region <- SharedMemory.list_regions!(filter), do: region.id)

  # What nothing that is kept can have changed.
  defp ids_anew(place) do
    {:ok, {regions, _corrupted}} = Native.list(place[:namespace], place[:dir])
    for region <- regions, do: region.id
  end

  # Files of a directory that this VM has mapped and that are gone: memory that is held for nobody.
  defp removed_and_mapped(dir), do: Enum.filter(mappings(dir), &(&1 =~ "(deleted)"))

  # From the second list on it is kept.
  defp keep, do: for(_ <- 1..3, do: SharedMemory.list_regions!())

  test "what another OS process creates and removes is seen at once", %{place: place} do
    peer = Foreign.start(place)
    keep()

    for round <- 1..50 do
      id = "round-#{round}"
      Foreign.run(peer, "Snakepit.SharedMemory.allocate_region!(4096, name: #{inspect(id)})")
      assert ids() == [id]
      assert [%{owner_pid: nil, version: 0}] = SharedMemory.list_regions!()
      Foreign.run(peer, "Snakepit.SharedMemory.write!(#{inspect(id)}, <<1, 2, 3>>)")
      assert [%{version: 2, bytes: 3} = region] = SharedMemory.list_regions!()
      assert to_string(region.platform_handle.writer_pid) == peer.os_pid
      Foreign.run(peer, "Snakepit.SharedMemory.deallocate_region!(#{inspect(id)})")
      assert ids() == []
    end

    Foreign.stop(peer)
  end

  test "a name that is used again is another region", %{place: place} do
    keep()

    for round <- 1..20 do
      size = round * 4096
      SharedMemory.allocate_region!(size, [name: "again"] ++ place)
      assert [%{id: "again", size: ^size}] = SharedMemory.list_regions!()
      SharedMemory.deallocate_region!("again")
    end

    assert ids() == []
  end

  test "any order of creating, removing and listing lists what a fresh look lists", %{
    place: place
  } do
    :rand.seed(:exsss, {1, 2, 3})

    for _ <- 1..300 do
      name = "n#{:rand.uniform(8)}"

      case :rand.uniform(4) do
        1 -> SharedMemory.allocate_region(4096, name: name)
        2 -> SharedMemory.deallocate_region(name)
        3 -> Listing.tidy(Enum.random([0, 60_000]))
        4 -> :ok
      end

      assert ids() == ids_anew(place)
    end

    for id <- ids(), do: SharedMemory.deallocate_region!(id)
  end

  test "lists of many processes at once are whole", %{place: place} do
    stay = for n <- 1..50, do: SharedMemory.allocate_region!(4096, name: "stay-#{n}")
    {_, changing} = in_process(fn -> spawn_link(fn -> churn(0) end) end)

    1..8
    |> Task.async_stream(fn _ -> for _ <- 1..50, do: assert(stay -- ids() == []) end)
    |> Stream.run()

    kill(changing)
    assert eventually(fn -> Enum.sort(stay) == ids() end)
    assert ids() == ids_anew(place)
    Enum.each(stay, &SharedMemory.deallocate_region!/1)
  end

  defp churn(n) do
    id = SharedMemory.allocate_region!(4096, name: "churn-#{n}")
    SharedMemory.deallocate_region!(id)
    churn(n + 1)
  end

  test "memory of a removed region goes though its listing is kept", %{dir: dir} do
    id = SharedMemory.allocate_region!(4_194_304, slots: 2)
    keep()
    assert mappings(dir) != []
    SharedMemory.deallocate_region!(id)
    # Nobody asks; the clock does.
    assert eventually(fn -> removed_and_mapped(dir) == [] end)
  end

  test "nothing is kept when nobody has listed for a while, nor when the application has stopped",
       %{
         dir: dir
       } do
    peer_sees = fn -> length(mappings(dir)) end
    id = SharedMemory.allocate_region!(4096)
    before = peer_sees.()
    keep()
    assert peer_sees.() > before
    assert eventually(fn -> peer_sees.() == before end)

    keep()
    SharedMemory.deallocate_region!(id)
    :ok = Application.stop(:snakepit_shared_memory)
    assert mappings(dir) == []
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
  end

  test "one list keeps nothing", %{dir: dir} do
    SharedMemory.allocate_region!(4096, name: "once")
    before = length(mappings(dir))
    assert ids() == ["once"]
    assert length(mappings(dir)) == before
    SharedMemory.deallocate_region!("once")
  end

  test "the death of the process that tidies loses nothing", %{dir: dir} do
    id = SharedMemory.allocate_region!(4096)
    keep()
    kill(Process.whereis(Clock))
    assert ids() == [id]
    SharedMemory.deallocate_region!(id)
    assert eventually(fn -> removed_and_mapped(dir) == [] end)
  end

  test "another namespace is looked at anew, and keeps nothing", %{place: place, dir: dir} do
    other = [namespace: "other-#{System.unique_integer([:positive])}", dir: dir]
    SharedMemory.allocate_region!(4096, [name: "there"] ++ other)
    before = length(mappings(dir))
    for _ <- 1..3, do: assert(ids(other) == ["there"])
    assert length(mappings(dir)) == before
    assert ids(place) == []
    SharedMemory.deallocate_region!("there", other)
  end

  test "a directory that was replaced is looked at anew", %{dir: dir} do
    keep()
    moved = dir <> "-moved"
    File.rename!(dir, moved)
    assert code(SharedMemory.list_regions()) == :io
    File.mkdir!(dir)
    assert SharedMemory.list_regions() == {:ok, []}
    File.rm_rf!(dir)
    # The registration of this VM lies there.
    File.rename!(moved, dir)
    id = SharedMemory.allocate_region!(4096)
    assert ids() == [id]
    SharedMemory.deallocate_region!(id)
  end

  test "a damaged region is left out, found by the health check, and back when it is mended", %{
    dir: dir
  } do
    id = SharedMemory.allocate_region!(4096)
    good = SharedMemory.allocate_region!(4096)
    keep()
    meta = Path.join(dir, "#{hd(SharedMemory.list_regions!()).namespace}_#{id}.meta")
    text = File.read!(meta)
    # By a rename, as a careful program would.
    File.write!(meta <> ".new", "no json")
    File.rename!(meta <> ".new", meta)
    assert ids() == [good]
    {:ok, {_, [^id]}} = Listing.list(struct!(Target, place_of()))
    findings = SharedMemory.health_check!().findings
    assert Enum.any?(findings, &(&1.check == :orphans and &1.message =~ "corrupted"))

    # In place, of which no event tells.
    File.write!(meta, text)
    assert Enum.sort(ids()) == Enum.sort([id, good])
    assert SharedMemory.health_check!().findings == []
    for id <- [id, good], do: SharedMemory.deallocate_region!(id)
  end

  defp place_of do
    {:ok, config} = Snakepit.SharedMemory.Config.fetch(:test)
    [id: "", key: "", namespace: config.namespace, dir: config.dir]
  end

  test "listings are refused as every NIF refuses what is none" do
    assert_raise ArgumentError, fn -> Native.list_kept(make_ref()) end
    assert_raise ArgumentError, fn -> Native.tidy_listing(:none, 0) end
    {:ok, listing} = Native.open_listing("ns", "/no/such/directory")
    assert_raise ArgumentError, fn -> Native.tidy_listing(listing, -1) end
    assert {:error, {:io, _, _, _}} = Native.list_kept(listing)
    assert Native.tidy_listing(listing, 0) == :ok
    assert {:error, {:invalid_name, _, _, _}} = Native.open_listing("no_good", "/dev/shm")
  end
end
