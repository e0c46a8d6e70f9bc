defmodule Snakepit.SharedMemory.AccessTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.Clock

  @counts ~w(access_count reads reads_by_id views writes bytes_read bytes_written)a

  defp counts(region, place) do
    region |> SharedMemory.get_region_info!(place) |> Map.take(@counts)
  end

  test "R7.2 access patterns are tracked for each region", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    none = Map.new(@counts, &{&1, 0})
    assert counts(id, place) == none

    SharedMemory.write!(id, "12345", place)
    SharedMemory.write!(id, ["ab", [?c]], [offset: 5] ++ place)
    assert %{writes: 2, bytes_written: 8, reads: 0, access_count: 2} = counts(id, place)

    "12345abc" = SharedMemory.read!(id, place)
    "345" = SharedMemory.read!(id, [offset: 2, length: 3] ++ place)
    "abc" = SharedMemory.read!(id, [offset: 5] ++ place)
    assert %{reads: 3, reads_by_id: 3, bytes_read: 14} = counts(id, place)

    region = SharedMemory.map_region!(id, place)
    for _ <- 1..10, do: "12345abc" = SharedMemory.read!(region)
    SharedMemory.write!(region, "x")

    expected = %{
      reads: 13,
      reads_by_id: 3,
      bytes_read: 94,
      views: 0,
      writes: 3,
      bytes_written: 9,
      access_count: 16
    }

    assert counts(id, place) == expected
    assert counts(region, place) == expected
    # Another's region has counts of its own.
    other = SharedMemory.allocate_region!(4096, place)
    assert counts(other, place) == none
    listed = place |> SharedMemory.list_regions!() |> Enum.find(&(&1.id == id))
    assert Map.take(listed, @counts) == expected
  end

  test "zero-copy binaries are accesses of their own kind", %{place: place} do
    handle = SharedMemory.share!("shared", place)
    "shared" = SharedMemory.fetch!(handle, dir: place[:dir])
    "shared" = SharedMemory.binary!(handle, dir: place[:dir])
    "shared" = SharedMemory.binary!(handle["name"], place)
    region = SharedMemory.map_region!(handle["name"], place)
    "shared" = SharedMemory.binary!(region)
    expected = %{views: 4, reads: 0, bytes_read: 0, writes: 1, access_count: 5}
    assert expected == Map.take(counts(handle["name"], place), Map.keys(expected))
    # Refused, it is none.
    other = SharedMemory.allocate_region!(4096, place)
    assert code(SharedMemory.binary(other, place)) == :not_sealed
    assert %{views: 0} = counts(other, place)
  end

  test "what fails is no access", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    assert code(SharedMemory.read(id, place)) == :empty
    assert code(SharedMemory.write(id, :binary.copy("x", 5000), place)) == :out_of_bounds
    SharedMemory.write!(id, "x", place)
    assert code(SharedMemory.read(id, [offset: 9, length: 1] ++ place)) == :out_of_bounds
    assert %{reads: 0, writes: 1, access_count: 1} = counts(id, place)
  end

  test "large values, which dirty schedulers copy, count as well", %{place: place} do
    bytes = 1024 * 1024
    id = SharedMemory.allocate_region!(bytes, place)
    SharedMemory.write!(id, :binary.copy("x", bytes), place)
    assert byte_size(SharedMemory.read!(id, place)) == bytes
    assert %{reads: 1, writes: 1, bytes_read: ^bytes, bytes_written: ^bytes} = counts(id, place)
  end

  test "counts are exact when many processes read and write at once", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "1234", place)
    region = SharedMemory.map_region!(id, place)

    1..16
    |> Enum.map(fn n ->
      Task.async(fn ->
        for _ <- 1..500 do
          "1234" =
            if rem(n, 2) == 0, do: SharedMemory.read!(region), else: SharedMemory.read!(id, place)

          if n == 1, do: SharedMemory.write!(region, "1234")
        end
      end)
    end)
    |> Task.await_many(60_000)

    assert %{
             reads: 8000,
             reads_by_id: 4000,
             bytes_read: 32_000,
             writes: 501,
             bytes_written: 2004
           } = counts(id, place)
  end

  test "one reader after another adds up", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "x", place)
    [{key, writer, nil}] = for {key, _, _} = row <- regions(), in_place?(key, id, place), do: row
    segment = native(place, id, %{size: nil})

    for n <- 1..3 do
      {:ok, reader} = Native.attach_beside(segment, writer)
      {:ok, shared} = Native.share_reader(reader)
      {:ok, "x"} = Native.read(reader)
      {:ok, "x"} = Native.read(shared)
      {:ok, :ok} = Native.close_reader(reader)
      {:ok, :ok} = Native.close_reader(shared)
      assert %{reads: reads, reads_by_id: ^n} = counts(id, place)
      assert reads == 2 * n
    end

    assert in_place?(key, id, place)
  end

  defp regions, do: :ets.tab2list(:persistent_term.get(:snakepit_shm_regions))
  defp in_place?(key, id, place), do: key == {place[:dir], place[:namespace], id}

  test "counts are exact with more schedulers than there are cores", %{place: place} do
    program = """
    Logger.configure(level: :error)
    place = #{inspect(place)}
    # In a place of its own, where nobody else comes and goes.
    Application.put_env(:snakepit, :shared_memory, place)
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    id = Snakepit.SharedMemory.allocate_region!(4096, place)
    Snakepit.SharedMemory.write!(id, "x", place)

    1..32
    |> Enum.map(fn _ ->
      Task.async(fn -> for _ <- 1..5000, do: Snakepit.SharedMemory.read!(id, place) end)
    end)
    |> Task.await_many(60_000)

    info = Snakepit.SharedMemory.get_region_info!(id, place)
    IO.inspect({info.reads, info.bytes_read, Snakepit.SharedMemory.stats!().operations.read.count})
    """

    lib = :snakepit_shared_memory |> Application.app_dir() |> Path.dirname()
    # Beyond a stripe for each of the schedulers: the others share one.
    arguments = ["--erl", "+S 40:40", "-e", program]
    options = [env: [{"ERL_LIBS", lib}], stderr_to_stdout: true]
    assert {"{160000, 160000, 160000}\n", 0} = System.cmd("elixir", arguments, options)
  end

  test "the first readers of a region, all at once, are counted together", %{place: place} do
    for _ <- 1..20 do
      id = SharedMemory.allocate_region!(4096, place)
      SharedMemory.write!(id, "x", place)

      1..8
      |> Enum.map(fn _ -> Task.async(fn -> SharedMemory.read!(id, place) end) end)
      |> Task.await_many()

      assert %{reads: 8} = counts(id, place)
      SharedMemory.deallocate_region!(id, place)
    end
  end

  test "of another OS process's region: through a mapping, nothing by id", %{place: place} do
    # Created beside the registry, so that it is looked at as another process's region is.
    {:ok, writer} = Native.create(native(place, "foreign"))
    {:ok, 2} = Native.write(writer, "theirs", nil)
    region = SharedMemory.map_region!("foreign", place)
    "theirs" = SharedMemory.read!(region)
    assert %{reads: 1, bytes_read: 6, writes: 0, access_count: 1} = counts(region, place)
    assert counts("foreign", place) == Map.new(@counts, &{&1, nil})
    {:ok, :ok} = Native.discard(writer)
  end

  test "a read is an access in time as well", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "x", place)
    written = SharedMemory.get_region_info!(id, place).last_accessed

    assert eventually(fn ->
             SharedMemory.read!(id, place)
             read = SharedMemory.get_region_info!(id, place).last_accessed
             DateTime.compare(read, written) == :gt
           end)
  end

  test "strangers change nothing about the clock" do
    import ExUnit.CaptureLog
    clock = Process.whereis(Clock)

    log =
      capture_log(fn ->
        send(clock, :hello)
        send(clock, {:timeout, make_ref(), :tick})
        GenServer.cast(clock, :what)
        assert GenServer.call(clock, :what) == {:error, :unexpected}
      end)

    assert log =~ "unexpected"
    assert Process.whereis(Clock) == clock
  end
end
