defmodule Snakepit.SharedMemory.ReadingTest do
  use Snakepit.SharedMemory.Case, async: true

  import Bitwise

  setup %{place: place} do
    {:ok, id: SharedMemory.allocate_region!(4096, place)}
  end

  describe "read" do
    test "an empty region", %{id: id, place: place} do
      assert code(SharedMemory.read(id, place)) == :empty
      assert code(SharedMemory.read(id, [offset: 0, length: 1] ++ place)) == :empty
      assert code(SharedMemory.read(id, [max_age: 1000] ++ place)) == :empty
    end

    test "every size that is handled in a way of its own", %{place: place} do
      id = SharedMemory.allocate_region!(2 * 1024 * 1024, place)
      region = SharedMemory.map_region!(id, place)

      for size <- [1, 63, 64, 65, 4095, 4096, 4097, 262_143, 262_144, 262_145, 2 * 1024 * 1024] do
        value = :crypto.strong_rand_bytes(size)
        SharedMemory.write!(region, value)
        assert SharedMemory.read!(region) == value
        assert SharedMemory.read!(id, place) == value
      end
    end

    test "a part", %{id: id, place: place} do
      SharedMemory.write!(id, "0123456789", place)
      region = SharedMemory.map_region!(id, place)

      for {options, expected} <- [
            {[offset: 0], "0123456789"},
            {[offset: 3], "3456789"},
            {[offset: 10], ""},
            {[length: 4], "0123"},
            {[length: 0], ""},
            {[offset: 9, length: 1], "9"},
            {%{offset: 2, length: 3}, "234"}
          ] do
        assert SharedMemory.read(region, options) == {:ok, expected}
      end

      u64 = 0xFFFF_FFFF_FFFF_FFFF

      for options <- [
            [offset: 10, length: 1],
            [offset: 11],
            [length: 11],
            [offset: 4096, length: 1],
            [offset: u64, length: 2],
            [offset: 2, length: u64],
            [offset: 1 <<< 80],
            [length: 1 <<< 80]
          ] do
        assert code(SharedMemory.read(region, options)) == :out_of_bounds, inspect(options)
      end

      for options <- [[offset: -1], [length: -1], [length: "1"], [max_age: -1], [len: 1]] do
        assert code(SharedMemory.read(region, options)) == :invalid_option
      end
    end

    test "the rest of a value whose length changes all the time is whole", %{id: id, place: place} do
      region = SharedMemory.map_region!(id, place)
      SharedMemory.write!(region, "0123")

      writer =
        Task.async(fn ->
          for n <- 1..20_000 do
            SharedMemory.write!(region, if(rem(n, 2) == 0, do: "0123", else: "0123456789"))
          end
        end)

      read_rests(region, writer)
    end

    defp read_rests(region, writer) do
      case SharedMemory.read(region, offset: 2) do
        {:ok, rest} -> assert rest in ["23", "23456789"]
        error -> assert code(error) == :version_conflict
      end

      unless Task.yield(writer, 0), do: read_rests(region, writer)
    end

    test "a large part goes over a dirty scheduler", %{place: place} do
      id = SharedMemory.allocate_region!(1024 * 1024, place)
      value = :crypto.strong_rand_bytes(1024 * 1024)
      SharedMemory.write!(id, value, place)
      part = SharedMemory.read!(id, [offset: 100, length: 700_000] ++ place)
      assert part == binary_part(value, 100, 700_000)
    end

    test "max_age", %{place: place} do
      id = SharedMemory.allocate_region!(4096, [timestamps: :precise] ++ place)
      SharedMemory.write!(id, "x", place)
      assert SharedMemory.read!(id, [max_age: 60_000] ++ place) == "x"

      assert eventually(fn -> code(SharedMemory.read(id, [max_age: 1] ++ place)) == :stale end)
      assert SharedMemory.read!(id, place) == "x"

      id = SharedMemory.allocate_region!(4096, [timestamps: :off] ++ place)
      SharedMemory.write!(id, "x", place)
      assert code(SharedMemory.read(id, [max_age: 1000] ++ place)) == :unsupported
    end

    test "a region of another OS process by name, without mapping it", %{place: place, dir: dir} do
      {:ok, writer} = Native.create(native(place, "foreign"))
      {:ok, 2} = Native.write(writer, "theirs", nil)
      assert SharedMemory.read!("foreign", place) == "theirs"
      assert SharedMemory.read!("foreign", [offset: 2, length: 2] ++ place) == "ei"
      {:ok, :ok} = Native.discard(writer)
      # Nothing stays mapped of it.
      assert eventually(fn -> Enum.filter(mappings(dir), &(&1 =~ "foreign")) == [] end)
    end

    test "a mapping of a region that has gone: its value, or that it is closed", %{place: place} do
      for {values, answer} <- [{["kept"], {:ok, "kept"}}, {[], :closed}] do
        id = SharedMemory.allocate_region!(4096, place)
        region = SharedMemory.map_region!(id, place)
        for value <- values, do: SharedMemory.write!(region, value)
        if values == [], do: assert(code(SharedMemory.read(region)) == :empty)
        SharedMemory.deallocate_region!(id, place)
        assert code(SharedMemory.read(region)) == answer
        assert code(SharedMemory.read(region, offset: 0)) == answer
        # The mapping itself is well, and says what it is of.
        assert {:ok, %{state: :closed, capacity: 4096}} =
                 Snakepit.SharedMemory.Native.reader_info(region.reader)

        assert code(SharedMemory.write(region, "more")) == :closed
        SharedMemory.unmap_region!(region)
        assert code(SharedMemory.read(region)) == :closed
      end
    end

    test "things that are no region", %{place: place} do
      assert code(SharedMemory.read("nobody", place)) == :not_found
      assert code(SharedMemory.read("nobody")) == :not_found
      assert code(SharedMemory.read(".x")) == :invalid_name

      for thing <- [nil, 1, {}, self(), %{"name" => "x"}, %{id: "x"}],
          do: assert(code(SharedMemory.read(thing)) == :invalid_argument)
    end

    test "a corrupted checksum is never a value", %{place: place, dir: dir} do
      id = SharedMemory.allocate_region!(4096, [integrity: :crc32c, slots: 1] ++ place)
      SharedMemory.write!(id, "precious value", place)
      assert SharedMemory.read!(id, place) == "precious value"

      file = Path.join(dir, SharedMemory.get_region_info!(id, place).platform_handle.file)
      {at, _} = :binary.match(File.read!(file), "precious value")
      {:ok, device} = :file.open(file, [:read, :write, :raw, :binary])
      :ok = :file.pwrite(device, at, "P")
      :ok = :file.close(device)
      assert code(SharedMemory.read(id, place)) == :corrupted
    end
  end
end
