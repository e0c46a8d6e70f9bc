defmodule Snakepit.SharedMemory.CleanupTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.Foreign

  @moduletag timeout: 180_000

  # Regions whose process was killed. Nobody else looks at this namespace.
  defp orphans(place, names) do
    settings = [cleanup_interval: 3_600_000, grace: 3_600_000, mode: :simulation]
    peer = Foreign.start(settings ++ place)

    for name <- names do
      code = "Snakepit.SharedMemory.allocate_region(4096, name: #{inspect(name)})"
      assert Foreign.run(peer, code) == {:ok, name}
    end

    files = Map.new(names, &{&1, file_of(&1, place)})
    Foreign.kill(peer)
    files
  end

  defp ids(items), do: items |> Enum.map(& &1.id) |> Enum.sort()

  defp cleanup(place, opts),
    do: SharedMemory.cleanup_regions!(Map.merge(Map.new(place), Map.new(opts)))

  test "R11.4 filters choose, a dry run only looks, names are whole names", %{
    place: place,
    dir: dir
  } do
    names = ["sensor", "sensor_data", "sensor-2", "model"]
    orphans(place, names)
    mine = SharedMemory.allocate_region!(4096, [name: "mine"] ++ place)
    all = Enum.sort(names)

    dry = cleanup(place, grace: 0, dry_run: true)
    assert ids(dry.removed) == all
    assert ids(dry.kept) == ["mine"]
    assert Enum.all?(dry.removed, &(&1.bytes > 4096 and &1.reason == "its writer died"))
    assert length(SharedMemory.list_regions!(place)) == 5

    # In time, in age, in module, in name: nothing fits.
    for opts <- [
          [grace: 3_600_000],
          [grace: 0, min_age: 3_600_000],
          [grace: 0, module: "other"],
          [grace: 0, pattern: "sens"],
          [grace: 0, pattern: "ensor*"],
          [grace: 0, pattern: "sensor?"],
          [pattern: "model"]
        ] do
      assert %{removed: [], kept: kept} = cleanup(place, opts)
      assert ids(kept) == Enum.sort(["mine" | all])
    end

    assert ids(cleanup(place, grace: 0, pattern: "sensor").removed) == ["sensor"]

    assert ids(cleanup(place, grace: 0, pattern: "sensor?*", min_age: 1).removed) == [
             "sensor-2",
             "sensor_data"
           ]

    assert ids(cleanup(place, %{grace: 0, module: "default"}).removed) == ["model"]
    assert ids(SharedMemory.list_regions!(place)) == [mine]
    SharedMemory.deallocate_region!(mine, place)
    assert TestDir.leftovers(dir) == []
  end

  test "R8.2 corrupted regions are reported, and removed only when asked", %{
    place: place,
    dir: dir
  } do
    %{"scribbled" => scribbled, "cut" => cut} = orphans(place, ["scribbled", "cut", "whole"])
    File.write!(scribbled, :binary.copy("garbage!", 1000))
    File.write!(cut, "")

    report = cleanup(place, grace: 3_600_000)
    assert ids(report.corrupted) == ["cut", "scribbled"]
    assert ids(report.kept) == ["whole"]
    assert report.removed == []
    assert ids(cleanup(place, corrupted: true, dry_run: true).corrupted) == ["cut", "scribbled"]
    assert File.exists?(cut)

    assert ids(cleanup(place, corrupted: true, grace: 3_600_000).removed) == ["cut", "scribbled"]
    assert ids(SharedMemory.list_regions!(place)) == ["whole"]
    assert ids(cleanup(place, grace: 0).removed) == ["whole"]
    assert TestDir.leftovers(dir) == []
  end

  test "R8.3 a region whose metadata was deleted is found again", %{place: place, dir: dir} do
    orphans(place, ["lost"])
    [meta] = Path.wildcard(Path.join(dir, "*.meta"))
    File.rm!(meta)
    assert code(SharedMemory.get_region_info("lost", place)) == :not_found
    report = cleanup(place, grace: 3_600_000)
    assert report.recovered == ["lost"]
    assert {:ok, _} = SharedMemory.get_region_info("lost", place)
    assert ids(cleanup(place, grace: 0).removed) == ["lost"]
  end

  test "R11.3 it disturbs nobody who works meanwhile", %{place: place, dir: dir} do
    orphans(place, for(n <- 1..20, do: "orphan-#{n}"))
    busy = SharedMemory.allocate_region!(4096, [name: "busy"] ++ place)
    SharedMemory.write!(busy, <<0::64>>, place)

    work = fn n ->
      {:ok, _version} = SharedMemory.write(busy, <<n::64>>, place)
      {:ok, <<_::64>>} = SharedMemory.read(busy, place)
      {:ok, own} = SharedMemory.allocate_region(4096, [slots: 1] ++ place)
      {:ok, region} = SharedMemory.map_region(own, place)
      {:ok, 2} = SharedMemory.write(region, "mine")
      {:ok, "mine"} = SharedMemory.read(own, place)
      {:ok, ^own} = SharedMemory.unmap_region(region)
      {:ok, ^own} = SharedMemory.deallocate_region(own, place)
    end

    workers = for _ <- 1..4, do: Task.async(fn -> Enum.each(1..50, work) end)

    # Each with everything that it may do, until all work is done.
    sweep = fn sweep, removed ->
      report = cleanup(place, grace: 0, corrupted: true)
      assert report.corrupted == []
      removed = removed ++ report.removed
      working? = Enum.any?(workers, &Process.alive?(&1.pid))
      if working?, do: sweep.(sweep, removed), else: removed
    end

    removed = sweep.(sweep, [])
    Task.await_many(workers, 60_000)
    # One of ours only when its owner was about to remove it itself.
    {orphans, others} = Enum.split_with(removed, &(&1.reason == "its writer died"))
    assert ids(orphans) == Enum.sort(for n <- 1..20, do: "orphan-#{n}")
    for region <- others, do: assert(region.reason =~ "closed")
    assert {:ok, <<_::64>>} = SharedMemory.read(busy, place)
    SharedMemory.deallocate_region!(busy, place)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
  end

  test "dead readers are cleared, and counted", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    peer = Foreign.start([cleanup_interval: 3_600_000, mode: :simulation] ++ place)
    assert {:ok, _} = Foreign.run(peer, "Snakepit.SharedMemory.map_region(#{inspect(id)})")
    Foreign.kill(peer)
    assert cleanup(place, dry_run: true).cleared_readers == 0
    assert cleanup(place, []).cleared_readers == 1
    assert cleanup(place, []).cleared_readers == 0
    assert SharedMemory.get_region_info!(id, place).reader_count == 0
  end

  test "others' files are left alone", %{place: place, dir: dir, namespace: namespace} do
    notes = Path.join(dir, "#{namespace}_notes.txt")
    File.write!(notes, "mine")
    cleanup(place, grace: 0, corrupted: true)
    assert File.read!(notes) == "mine"
    File.rm!(notes)
  end

  test "options are checked, each by its name", %{place: place} do
    for {option, value} <- [
          grace: -1,
          grace: "1 s",
          grace: 1.5,
          min_age: nil,
          min_age: 0x1_0000_0000_0000_0000,
          module: :default,
          pattern: ~c"abc",
          pattern: <<255>>,
          dry_run: "yes",
          corrupted: nil
        ] do
      assert {:error, %Error{code: :invalid_option} = error} =
               SharedMemory.cleanup_regions([{option, value} | place])

      assert error.message =~ inspect(option)
      assert error.operation == :cleanup_regions
    end

    assert {:error, error} = SharedMemory.cleanup_regions(dryrun: true)
    assert error.message =~ "did you mean :dry_run?"
    assert code(SharedMemory.cleanup_regions(:all)) == :invalid_option
    assert code(SharedMemory.cleanup_regions(namespace: "a_b")) == :invalid_name
    SharedMemory.allocate_region!(4096, place)
    assert code(SharedMemory.cleanup_regions([module: "a/b"] ++ place)) == :invalid_name
    assert {:error, %Error{}} = SharedMemory.cleanup_regions(dir: "/no/such/directory")
    assert_raise Error, fn -> SharedMemory.cleanup_regions!(grace: -1) end
    assert %{removed: []} = SharedMemory.cleanup_regions!(place)
  end
end
