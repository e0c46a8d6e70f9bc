defmodule Snakepit.SharedMemory.ExchangeTest do
  use Snakepit.SharedMemory.Case, async: true

  import Bitwise

  defp share!(data, place, options \\ []), do: SharedMemory.share!(data, options ++ place)
  defp fetch(handle, place), do: SharedMemory.fetch(handle, dir: place[:dir])

  test "the handle of a region that was sealed by hand", %{place: place, dir: dir} do
    id = SharedMemory.allocate_region!(4096, [slots: 3] ++ place)
    region = SharedMemory.map_region!(id, place)
    SharedMemory.write!(region, "first")
    assert code(SharedMemory.handle(id, place)) == :not_sealed
    assert code(SharedMemory.handle(region)) == :not_sealed
    SharedMemory.write!(region, <<1.0::float-64-little>>, dtype: :f64)
    SharedMemory.seal!(region)

    {:ok, handle} = SharedMemory.handle(id, place)
    assert %{"name" => ^id, "bytes" => 8, "dtype" => "<f8", "shape" => [1]} = handle
    assert SharedMemory.handle(region) == {:ok, handle}
    assert SharedMemory.handle(handle, dir: dir) == {:ok, handle}
    assert SharedMemory.fetch(handle, dir: dir) == {:ok, <<1.0::float-64-little>>}

    # Of a region that this VM does not own.
    {:ok, writer} = Native.create(native(place, "foreign"))
    {:ok, _} = Native.write(writer, "x", nil)
    {:ok, _} = Native.seal(writer)
    assert %{"name" => "foreign", "format" => "raw"} = SharedMemory.handle!("foreign", place)
    {:ok, :ok} = Native.discard(writer)

    SharedMemory.deallocate_region!(id, place)
    assert code(SharedMemory.handle(handle, dir: dir)) == :not_found
    assert code(SharedMemory.handle(id, place)) == :not_found
    assert code(SharedMemory.handle(:nobody)) == :invalid_argument
    assert_raise Error, fn -> SharedMemory.handle!(id, place) end
  end

  test "a handle is a JSON-safe map with the ten keys", %{place: place} do
    handle = share!("hello", place, name: "greeting")

    assert Map.keys(handle) |> Enum.sort() ==
             ~w(__snakepit_shm__ bytes dtype format generation name namespace shape token version)

    assert %{
             "__snakepit_shm__" => 1,
             "name" => "greeting",
             "version" => 2,
             "generation" => 1,
             "bytes" => 5,
             "dtype" => "|u1",
             "shape" => [5],
             "format" => "raw"
           } = handle

    assert handle["namespace"] == place[:namespace]
    assert is_binary(handle["token"])
  end

  test "what is shared is what is fetched, for every form of data", %{place: place} do
    big = :crypto.strong_rand_bytes(3_000_000)

    for data <- ["x", ["a", [?b | "c"]], big, [big, "tail"], List.duplicate(?z, 10_000)] do
      handle = share!(data, place)
      expected = IO.iodata_to_binary(data)
      assert {:ok, ^expected} = fetch(handle, place)
      assert SharedMemory.binary(handle, dir: place[:dir]) == {:ok, expected}
      assert SharedMemory.read(handle, dir: place[:dir]) == {:ok, expected}
    end
  end

  test "dtype, shape and format travel along", %{place: place} do
    floats = for n <- 1..6, into: <<>>, do: <<n::float-32-little>>

    for {options, dtype, shape, format} <- [
          {[dtype: :f32, shape: [2, 3]], "<f4", [2, 3], "numpy"},
          {[dtype: {:f, 32}], "<f4", [6], "numpy"},
          {[dtype: "<i2", shape: [12]], "<i2", [12], "numpy"},
          {[dtype: :u8], "|u1", [24], "numpy"},
          {[dtype: :c64, shape: [3, 1]], "<c8", [3, 1], "numpy"},
          {[dtype: "<M8[ns]"], "<M8[ns]", [3], "numpy"},
          {[format: :arrow_ipc], "|u1", [24], "arrow_ipc"},
          {[], "|u1", [24], "raw"}
        ] do
      handle = share!(floats, place, options)
      assert {handle["dtype"], handle["shape"], handle["format"]} == {dtype, shape, format}
      assert fetch(handle, place) == {:ok, floats}
    end
  end

  test "options of a creation go through", %{place: place} do
    handle = share!("x", place, name: "named", metadata: %{a: 1}, integrity: :crc32c)
    info = SharedMemory.get_region_info!(handle, dir: place[:dir])
    assert %{id: "named", metadata: %{a: 1}, slots: 1, state: :sealed} = info
    assert code(SharedMemory.share("y", [name: "named"] ++ place)) == :already_exists
    assert fetch(handle, place) == {:ok, "x"}
  end

  test "nothing to share, too much, or no data at all: the error, and nothing created", %{
    place: place,
    dir: dir
  } do
    assert code(SharedMemory.share("", place)) == :invalid_size
    assert code(SharedMemory.share([], place)) == :invalid_size

    for data <- [nil, :x, 1, %{}, [:x], ["a" | :b], <<1::1>>] do
      assert code(SharedMemory.share(data, place)) == :invalid_argument
      assert code(SharedMemory.share(data, [dtype: :u8] ++ place)) == :invalid_argument
    end

    for options <- [[slots: 2], [dtype: :f32], [shape: [1]], [name: 1], [owner: nil, own: 1]] do
      assert code(SharedMemory.share("abc", options ++ place)) == :invalid_option
    end

    assert code(SharedMemory.share("abc", [name: "../x"] ++ place)) == :invalid_name
    assert TestDir.leftovers(dir) == []
  end

  test "a region that could not be filled is removed", %{place: place, dir: dir} do
    # The description is found wrong when the value is written, after the region was created.
    options = [dtype: :f32, shape: [100]] ++ place
    assert code(SharedMemory.share("abcd", options)) == :invalid_option
    assert TestDir.leftovers(dir) == []
  end

  describe "a handle" do
    setup %{place: place} do
      {:ok, handle: share!("the value", place, name: "target")}
    end

    test "with a field missing", %{handle: handle, place: place} do
      for key <- Map.keys(handle) do
        assert code(fetch(Map.delete(handle, key), place)) == :invalid_handle, key
      end
    end

    test "with a field too many or of another type", %{handle: handle, place: place} do
      assert code(fetch(Map.put(handle, "extra", 1), place)) == :invalid_handle
      assert code(fetch(Map.put(handle, :name, "target"), place)) == :invalid_handle

      for key <- Map.keys(handle),
          value <- [nil, 1.5, true, [], %{}, [1, [2]], "", -1, 1 <<< 70] do
        assert {:error, %Error{}} = fetch(Map.put(handle, key, value), place)
      end

      for key <- Map.keys(handle),
          value <- [self(), make_ref(), {1}, :atom, ["a" | "b"], <<255>>, <<1::3>>] do
        assert code(fetch(Map.put(handle, key, value), place)) == :invalid_handle
      end
    end

    test "with hostile fields", %{handle: handle, place: place, dir: dir} do
      deep = Enum.reduce(1..100_000, 1, fn _, inner -> [inner] end)
      wide = Map.new(1..10_000, &{"k#{&1}", &1})
      before = File.ls!(dir)

      for {key, value} <- [
            {"name", "../../etc/passwd"},
            {"name", "target\0"},
            {"name", String.duplicate("x", 100_000)},
            {"namespace", "../x"},
            {"namespace", "a_b"},
            {"version", 3},
            {"version", 0},
            {"version", 4},
            {"generation", 2},
            {"generation", 1 <<< 40},
            {"bytes", 8},
            {"bytes", 1 <<< 40},
            {"shape", [8]},
            {"shape", [3, 3]},
            {"shape", [0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF]},
            {"shape", deep},
            {"shape", Enum.to_list(1..100_000)},
            {"shape", wide},
            {"dtype", "|O8"},
            {"dtype", "<f4"},
            {"format", "pickle"},
            {"format", "numpy"},
            {"token", ""},
            {"token", String.duplicate("0", 32)},
            {"token", String.upcase(handle["token"])},
            {"__snakepit_shm__", 2}
          ] do
        answer = fetch(Map.put(handle, key, value), place)

        assert code(answer) in [:invalid_handle, :invalid_name, :not_found],
               inspect({key, answer})
      end

      assert code(fetch(Map.merge(handle, wide), place)) == :invalid_handle
      assert File.ls!(dir) == before
      assert fetch(handle, place) == {:ok, "the value"}
    end

    test "that is small in memory and endless to walk through", context do
      %{handle: handle, place: place} = context
      # Ten million items, all of them the same few lists.
      nested = Enum.reduce(1..3, 1, fn _, inner -> List.duplicate(inner, 60) end)
      shared = for n <- 1..40, into: handle, do: {"k#{n}", nested}
      long = String.duplicate("x", 50_000_000)

      for hostile <- [
            shared,
            Map.put(handle, "shape", nested),
            Map.put(handle, "name", long),
            Map.put(handle, long, 1),
            Map.merge(handle, Map.new(1..50, &{"k#{&1}", String.duplicate("x", 1_000_000)}))
          ] do
        {us, answer} = :timer.tc(fn -> fetch(hostile, place) end)
        assert code(answer) == :invalid_handle
        # It is looked at on a normal scheduler.
        assert us < 200_000
      end
    end

    test "that is none", %{place: place} do
      for thing <- [nil, "target", 1, [], %{}, %{"name" => "target"}, self(), {:ok, %{}}] do
        assert code(fetch(thing, place)) == :invalid_handle
      end
    end

    test "whose region is gone, or another by now", %{handle: handle, place: place} do
      SharedMemory.deallocate_region!(handle, dir: place[:dir])
      assert code(fetch(handle, place)) == :not_found
      assert code(SharedMemory.deallocate_region(handle, dir: place[:dir])) == :not_found

      later = share!("the value", place, name: "target")
      assert code(fetch(handle, place)) == :not_found
      assert code(SharedMemory.binary(handle, dir: place[:dir])) == :not_found
      assert code(SharedMemory.read(handle, dir: place[:dir])) == :not_found
      assert code(SharedMemory.get_region_info(handle, dir: place[:dir])) == :not_found
      assert fetch(later, place) == {:ok, "the value"}
    end

    test "that says more than its segment knows names its region all the same", context do
      %{place: place} = context
      dir = [dir: place[:dir]]
      handle = share!(<<0::16, 1::16>>, place, dtype: "|V2", shape: [2])
      # As a worker sends it.
      said = Map.merge(handle, %{"element" => "bfloat16", "order" => "C"})
      assert fetch(said, place) == {:ok, <<0::16, 1::16>>}
      region = SharedMemory.map_region!(said, dir)
      SharedMemory.unmap_region!(region)

      assert code(SharedMemory.deallocate_region(Map.put(said, "order", "F"), dir)) ==
               :invalid_handle

      assert SharedMemory.deallocate_region(said, dir) == {:ok, handle["name"]}
    end

    test "reads in part", %{handle: handle, place: place} do
      dir = [dir: place[:dir]]
      assert SharedMemory.read(handle, [offset: 4] ++ dir) == {:ok, "value"}
      assert SharedMemory.read(handle, [offset: 4, length: 2] ++ dir) == {:ok, "va"}
      assert code(SharedMemory.read(handle, [offset: 8, length: 2] ++ dir)) == :out_of_bounds
      assert code(SharedMemory.read(handle, [offset: 10] ++ dir)) == :out_of_bounds
      assert code(SharedMemory.read(handle, [max_age: 1] ++ dir)) == :invalid_option
    end

    test "cannot be written through, not even into a later region of its name", context do
      %{handle: handle, place: place} = context
      SharedMemory.deallocate_region!(handle, dir: place[:dir])
      SharedMemory.allocate_region!(4096, [name: "target"] ++ place)
      assert code(SharedMemory.write(handle, "x", dir: place[:dir])) == :sealed
      assert code(SharedMemory.seal(handle, dir: place[:dir])) == :sealed
      assert code(SharedMemory.read("target", place)) == :empty
    end
  end

  test "binary of what is not sealed, or not there", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    assert code(SharedMemory.binary(id, place)) == :not_sealed
    SharedMemory.write!(id, "x", place)
    region = SharedMemory.map_region!(id, place)
    assert code(SharedMemory.binary(region)) == :not_sealed
    SharedMemory.seal!(id, place)
    assert SharedMemory.binary!(region) == "x"
    assert SharedMemory.binary!(id, place) == "x"
    assert code(SharedMemory.binary("nobody", place)) == :not_found
    assert code(SharedMemory.binary(:x, place)) == :invalid_argument
  end

  test "binary of another OS process's sealed region, by name", %{place: place} do
    {:ok, writer} = Native.create(native(place, "foreign"))
    {:ok, 2} = Native.write(writer, "theirs", nil)
    {:ok, 2} = Native.seal(writer)
    binary = SharedMemory.binary!("foreign", place)
    {:ok, :ok} = Native.discard(writer)
    assert binary == "theirs"
  end

  describe "fetch" do
    setup %{place: place} do
      {:ok, handle: share!(<<1, 2, 3, 4>>, place, dtype: :u16)}
    end

    test "checks its options", %{place: place, handle: handle} do
      for options <- [
            [adopt: 1],
            [as: :list],
            [into: 5],
            [into: self()],
            [into: "x", as: :tensor],
            [into: "x", adopt: true],
            [owner: 1]
          ] do
        assert code(SharedMemory.fetch(handle, options ++ place)) == :invalid_option
      end

      {:error, error} = SharedMemory.fetch(handle, [adpot: true] ++ place)
      assert error.message =~ "did you mean :adopt?"
    end

    test "of what was left behind: all of those who ask at once have it, one owns it", context do
      %{place: place, dir: dir} = context

      for n <- 1..10 do
        {:ok, writer} = Native.create(native(place, "left-#{n}"))
        {:ok, _} = Native.write(writer, "value", nil)
        {:ok, _} = Native.seal(writer)
        {:ok, handle} = Native.writer_handle(writer)
        {:ok, :ok} = Native.release(writer)
        test = self()

        fetchers =
          for _ <- 1..100 do
            spawn_link(fn ->
              receive do: (:go -> :ok)
              send(test, {self(), SharedMemory.fetch(handle, dir: dir, adopt: true)})
              receive do: (:stop -> :ok)
            end)
          end

        for pid <- fetchers, do: send(pid, :go)

        for pid <- fetchers do
          assert_receive {^pid, answer}, 60_000
          assert answer == {:ok, "value"}
        end

        assert SharedMemory.get_region_info!(handle, dir: dir).owner_pid in fetchers
        for pid <- fetchers, do: send(pid, :stop)
        assert eventually(fn -> TestDir.leftovers(dir) |> Enum.all?(&(not (&1 =~ "left"))) end)
      end
    end

    test "into a buffer, as often as there is room and beyond", context do
      %{place: place, handle: handle} = context
      buffer = SharedMemory.buffer!(4096, copies: 2)
      all = for _ <- 1..5, do: SharedMemory.fetch!(handle, [into: buffer] ++ place)
      assert all == List.duplicate(<<1, 2, 3, 4>>, 5)
      assert Native.buffer_pieces(buffer.ref) == 2
      small = SharedMemory.buffer!(1)
      assert SharedMemory.fetch!(handle, [into: small] ++ place) == <<1, 2, 3, 4>>
      made_up = %{buffer | ref: make_ref()}
      assert code(SharedMemory.fetch(handle, [into: made_up] ++ place)) == :invalid_argument
      assert fetch(handle, place) == {:ok, <<1, 2, 3, 4>>}
    end

    test "into a region, with what the handle says of the value", context do
      %{place: place, handle: handle} = context
      id = SharedMemory.allocate_region!(4096, place)
      assert SharedMemory.fetch!(handle, [into: id] ++ place) == 2
      assert %{dtype: "<u2", shape: [2]} = SharedMemory.get_region_info!(id, place)
      region = SharedMemory.map_region!(id, place)
      raw = share!("plain", place)
      assert SharedMemory.fetch!(raw, [into: region] ++ place) == 4
      assert SharedMemory.read!(region) == "plain"
      assert %{format: :raw} = SharedMemory.get_region_info!(id, place)

      looking = SharedMemory.map_region!(id, [access_mode: :read_only] ++ place)
      refused = SharedMemory.fetch(handle, [into: looking] ++ place)
      assert code(refused) == :permission_denied
      assert code(SharedMemory.fetch(handle, [into: "nobody"] ++ place)) == :not_found
      # What is ours is not removed for having been copied.
      assert fetch(handle, place) == {:ok, <<1, 2, 3, 4>>}
    end
  end

  test "the owner may be another process", %{place: place, dir: dir} do
    {:ok, owner} = in_process(fn -> :ok end)
    {handle, sharer} = in_process(fn -> share!("kept", place, owner: owner) end)
    kill(sharer)
    assert fetch(handle, place) == {:ok, "kept"}
    kill(owner)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
  end
end
