defmodule Snakepit.SharedMemory.HistoryTest do
  # Kills the registry, and changes the configuration.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{History, Registry, Target}

  defp operations(region, place) do
    for change <- SharedMemory.history!(region, place), do: change.operation
  end

  defp rows do
    :ets.info(:snakepit_shm_history, :size) + :ets.info(:snakepit_shm_history_numbers, :size)
  end

  test "R7.5 changes are kept, with time and process, writes are not", %{place: place} do
    before = DateTime.utc_now()
    id = SharedMemory.allocate_region!(4096, [slots: 3] ++ place)
    region = SharedMemory.map_region!(id, place)
    for _ <- 1..10, do: SharedMemory.write!(region, "x")
    {_region, other} = in_process(fn -> SharedMemory.map_region!(id, place) end)
    kill(other)
    assert eventually(fn -> :unmap in operations(id, place) end)
    SharedMemory.unmap_region!(region)
    SharedMemory.seal!(id, place)

    me = self()
    assert {:ok, changes} = SharedMemory.history(id, place)

    assert [
             %{operation: :allocate, pid: ^me, details: %{size: 4096, slots: 3}},
             %{operation: :map, pid: ^me},
             %{operation: :map, pid: ^other},
             %{operation: :unmap, pid: ^other},
             %{operation: :unmap, pid: ^me},
             %{operation: :seal, pid: ^me, details: %{version: 20}}
           ] = changes

    times = [before | Enum.map(changes, & &1.at)] ++ [DateTime.utc_now()]
    assert times == Enum.sort(times, DateTime)
  end

  test "no change is noted that did not happen", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    :not_mapped = code(SharedMemory.unmap_region(id, place))
    :invalid_option = code(SharedMemory.map_region(id, [access_mode: :all] ++ place))
    assert operations(id, place) == [:allocate]
  end

  test "only the latest are kept, as many as configured", %{place: place} do
    with_config([history_limit: 5], fn ->
      id = SharedMemory.allocate_region!(4096, place)

      for _ <- 1..20 do
        SharedMemory.unmap_region!(SharedMemory.map_region!(id, place))
      end

      SharedMemory.write!(id, "x", place)
      SharedMemory.seal!(id, place)
      assert operations(id, place) == [:map, :unmap, :map, :unmap, :seal]
      # Five entries and the number of the last.
      assert rows() == 6
    end)
  end

  test "history_limit: 0 keeps none", %{place: place} do
    with_config([history_limit: 0], fn ->
      id = SharedMemory.allocate_region!(4096, place)
      SharedMemory.unmap_region!(SharedMemory.map_region!(id, place))
      assert SharedMemory.history(id, place) == {:ok, []}
      assert code(SharedMemory.history("nobody", place)) == :not_found
      assert rows() == 0
    end)
  end

  test "it goes with the region, and a later one of the name has its own", %{place: place} do
    before = rows()
    id = SharedMemory.allocate_region!(4096, [name: "again"] ++ place)
    SharedMemory.map_region!(id, place)
    SharedMemory.deallocate_region!(id, place)
    assert code(SharedMemory.history(id, place)) == :not_found
    SharedMemory.unmap_region!(id, place)
    assert rows() == before
    SharedMemory.allocate_region!(4096, [name: "again"] ++ place)
    assert operations(id, place) == [:allocate]
  end

  test "a mapping of an earlier region of the name leaves no trace in the later one", %{
    place: place
  } do
    id = SharedMemory.allocate_region!(4096, [name: "again"] ++ place)
    for _ <- 1..2, do: SharedMemory.map_region!(id, place)
    SharedMemory.deallocate_region!(id, place)
    SharedMemory.unmap_region!(id, place)
    SharedMemory.allocate_region!(4096, [name: "again"] ++ place)
    assert operations(id, place) == [:allocate]
  end

  test "it goes with the owner", %{place: place} do
    before = rows()
    {id, owner} = in_process(fn -> SharedMemory.allocate_region!(4096, place) end)
    assert operations(id, place) == [:allocate]
    kill(owner)
    assert eventually(fn -> rows() == before end)
  end

  test "of another OS process's region: takeover and handover, while it is mapped", %{
    place: place
  } do
    before = rows()
    {:ok, writer} = Native.create(native(place, "foreign"))
    assert code(SharedMemory.history("foreign", place)) == :not_found
    reading = SharedMemory.map_region!("foreign", place)
    assert operations("foreign", place) == [:map]
    {:ok, :ok} = Native.release(writer)
    writing = SharedMemory.map_region!("foreign", [access_mode: :read_write] ++ place)
    assert operations(writing, place) == [:map, :takeover]
    SharedMemory.unmap_region!(writing)
    assert operations("foreign", place) == [:map, :takeover, :handover]
    SharedMemory.unmap_region!(reading)
    assert code(SharedMemory.history("foreign", place)) == :not_found
    assert rows() == before
    Native.remove(native(place, "foreign"))
  end

  test "it survives a crash of the registry", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.map_region!(id, place)
    registry = Process.whereis(Registry)

    capture_log(fn ->
      kill(registry)
      assert eventually(fn -> Process.whereis(Registry) not in [nil, registry] end)
    end)

    assert operations(id, place) == [:allocate, :map]
    SharedMemory.unmap_region!(id, place)
    assert operations(id, place) == [:allocate, :map, :unmap]
  end

  test "many changing one region at once: the latest are all there", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    {:ok, target} = Target.resolve(id, Map.new(place), :history)

    1..20
    |> Enum.map(fn n ->
      Task.async(fn ->
        for k <- 1..50, do: History.add(target.key, :note, self(), %{n: {n, k}})
      end)
    end)
    |> Task.await_many()

    assert operations(id, place) == List.duplicate(:note, 50)
  end

  test "the table has a bound whatever there is" do
    assert History.rows(0) == 50
    assert History.rows(199_999) == 50
    assert History.rows(200_000) == 4
  end

  test "R7.5 asking for the table's size suspends nobody, however busy the schedulers are" do
    # The registry asks at each change. A counter spread over the schedulers answers when each has
    # had its turn: milliseconds, where looking takes microseconds.
    refute :ets.info(:snakepit_shm_history, :decentralized_counters)
    refute :ets.info(:snakepit_shm_records, :decentralized_counters)
  end

  test "what is no region", %{place: place} do
    assert code(SharedMemory.history("nobody", place)) == :not_found
    assert code(SharedMemory.history(nil, place)) == :invalid_argument
    assert code(SharedMemory.history("nobody", nonsense: 1)) == :invalid_option
    assert_raise Error, fn -> SharedMemory.history!("nobody", place) end
  end
end
