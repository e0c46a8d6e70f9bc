defmodule Snakepit.SharedMemory.WritingTest do
  use Snakepit.SharedMemory.Case, async: true

  import Bitwise

  setup %{place: place} do
    {:ok, id: SharedMemory.allocate_region!(4096, place)}
  end

  describe "write" do
    test "versions are even and go up", %{id: id, place: place} do
      assert for(_ <- 1..5, do: SharedMemory.write!(id, "x", place)) == [2, 4, 6, 8, 10]
    end

    test "takes any iodata", %{place: place} do
      id = SharedMemory.allocate_region!(1024 * 1024, place)
      big = :crypto.strong_rand_bytes(100_000)
      sub = binary_part(big, 17, 5000)
      <<_::3, unaligned::binary-size(4000), _::bitstring>> = big

      deep = Enum.reduce(1..50_000, "core", fn n, inner -> [inner, rem(n, 256)] end)
      left = Enum.reduce(1..50_000, [], fn n, inner -> [rem(n, 256) | [inner]] end)

      for data <- [
            "plain",
            [big, sub],
            ["a", [?b, ["c" | "tail"]], [], "", [[[]]]],
            [1 | <<2, 3>>],
            [0, 255],
            [[], [[[big]]], unaligned],
            Enum.to_list(0..255),
            List.duplicate("x", 50_000),
            List.duplicate(sub, 100),
            deep,
            left
          ] do
        expected = IO.iodata_to_binary(data)
        assert {:ok, _version} = SharedMemory.write(id, data, place)
        assert SharedMemory.read!(id, place) == expected
      end
    end

    test "refuses what is not iodata, and changes nothing", %{id: id, place: place} do
      SharedMemory.write!(id, "before", place)

      for data <- [
            nil,
            :atom,
            1,
            1.5,
            {"a"},
            %{},
            [256],
            [-1],
            [1.0],
            [nil],
            ["a" | 1],
            ["a" | :b],
            [["x" | nil]],
            <<1::3>>,
            ["a", <<1::3>>],
            [self()],
            fn -> :ok end
          ] do
        assert code(SharedMemory.write(id, data, place)) == :invalid_argument, inspect(data)
        assert code(SharedMemory.write(id, data, [offset: 0] ++ place)) == :invalid_argument
        assert code(SharedMemory.write(id, data, [dtype: :u8] ++ place)) == :invalid_argument
      end

      assert SharedMemory.read!(id, place) == "before"
    end

    test "empty and over-long values are out of bounds, whatever their form", %{
      id: id,
      place: place
    } do
      SharedMemory.write!(id, "before", place)

      for data <- ["", [], [[], ""], String.duplicate("x", 4097), List.duplicate("x", 4097)] do
        assert code(SharedMemory.write(id, data, place)) == :out_of_bounds
      end

      # More than a normal scheduler takes on, and far more than the region holds.
      assert code(SharedMemory.write(id, List.duplicate("yy", 300_000), place)) == :out_of_bounds
      assert code(SharedMemory.write(id, :binary.copy("y", 5_000_000), place)) == :out_of_bounds
      assert SharedMemory.read!(id, place) == "before"

      full = :crypto.strong_rand_bytes(4096)
      assert {:ok, _} = SharedMemory.write(id, full, place)
      assert SharedMemory.read!(id, place) == full
    end

    test "iodata that stands for terabytes is refused without being built", %{
      id: id,
      place: place
    } do
      mega = :binary.copy("x", 1024 * 1024)
      nested = Enum.reduce(1..12, mega, fn _, inner -> [inner, inner, inner] end)
      assert IO.iodata_length(nested) > 500 * 1024 * 1024 * 1024
      assert code(SharedMemory.write(id, nested, place)) == :out_of_bounds
      assert code(SharedMemory.share(nested, place)) == :invalid_size
    end

    @tag timeout: 120_000
    test "a list that nobody could walk to its end is refused", %{id: id, place: place} do
      endless = Enum.reduce(1..200, [], fn _, inner -> [inner | inner] end)
      assert {:error, error} = SharedMemory.write(id, endless, place)
      assert error.code == :invalid_option
      assert error.message =~ "cells"
    end

    test "at an offset: patches, extends, and fills a gap with zeros", %{id: id, place: place} do
      assert {:ok, 2} = SharedMemory.write(id, "abc", [offset: 2] ++ place)
      assert SharedMemory.read!(id, place) == <<0, 0, "abc">>
      assert {:ok, 4} = SharedMemory.write(id, ["X", [?Y]], [offset: 0] ++ place)
      assert SharedMemory.read!(id, place) == "XYabc"
      assert {:ok, 6} = SharedMemory.write(id, "!", [offset: 4095] ++ place)
      value = SharedMemory.read!(id, place)
      assert byte_size(value) == 4096
      assert binary_part(value, 0, 5) == "XYabc"
      assert binary_part(value, 5, 4090) == :binary.copy(<<0>>, 4090)
    end

    test "offsets that do not fit, or overflow, move no byte", %{id: id, place: place} do
      SharedMemory.write!(id, "before", place)
      u64 = 0xFFFF_FFFF_FFFF_FFFF

      for offset <- [4096, 4097, u64 - 127, u64, u64 + 1, 1 <<< 100] do
        assert code(SharedMemory.write(id, "xx", [offset: offset] ++ place)) == :out_of_bounds
      end

      for offset <- [-1, 1.0, "1", :one] do
        assert code(SharedMemory.write(id, "xx", [offset: offset] ++ place)) == :invalid_option
      end

      assert code(SharedMemory.write(id, "", [offset: 0] ++ place)) == :out_of_bounds
      assert SharedMemory.read!(id, place) == "before"
    end

    test "patches of large regions, too", %{place: place} do
      id = SharedMemory.allocate_region!(1024 * 1024, place)
      whole = :crypto.strong_rand_bytes(1024 * 1024)
      SharedMemory.write!(id, whole, place)
      SharedMemory.write!(id, "patch", [offset: 500_000] ++ place)
      <<before::binary-size(500_000), _::binary-size(5), rest::binary>> = whole
      assert SharedMemory.read!(id, place) == before <> "patch" <> rest
    end

    test "with a description that contradicts the data or itself", %{id: id, place: place} do
      for options <- [
            [dtype: :f32],
            [dtype: :f32, shape: [2]],
            [dtype: :f32, shape: [1, 1, 1, 1, 1, 1, 1]],
            [dtype: :f33],
            [dtype: "float32"],
            [dtype: "|O8"],
            [shape: [3]],
            [shape: [3 | 1], dtype: :u8],
            [shape: [-3], dtype: :u8],
            [format: :numpy],
            [format: :raw, dtype: :u8],
            [format: :arrow_ipc, dtype: :u8],
            [format: :pickle],
            [dtype: :u8, offset: 0]
          ] do
        assert code(SharedMemory.write(id, "abc", options ++ place)) == :invalid_option,
               inspect(options)
      end

      assert code(SharedMemory.read(id, place)) == :empty
      assert {:ok, 2} = SharedMemory.write(id, "abc", [dtype: :u8, shape: [3, 1]] ++ place)
    end

    test "unknown regions and misspelt options", %{id: id, place: place} do
      assert code(SharedMemory.write("nobody", "x", place)) == :not_found
      assert code(SharedMemory.write(nil, "x", place)) == :invalid_argument
      assert {:error, error} = SharedMemory.write(id, "x", [ofset: 1] ++ place)
      assert error.message == "unknown option :ofset, did you mean :offset?"
      assert code(SharedMemory.write(id, "x", :options)) == :invalid_option
      assert code(SharedMemory.write(id, "x", [1])) == :invalid_option
    end
  end

  describe "seal" do
    test "ends writing, not reading", %{id: id, place: place} do
      assert code(SharedMemory.seal(id, place)) == :empty
      SharedMemory.write!(id, "last", place)
      assert {:ok, 2} = SharedMemory.seal(id, place)
      assert code(SharedMemory.write(id, "more", place)) == :sealed
      assert code(SharedMemory.write(id, "more", [offset: 1] ++ place)) == :sealed
      assert SharedMemory.read!(id, place) == "last"
      assert code(SharedMemory.seal(id, place)) == :sealed
    end

    test "by mapping; not through a read-only one", %{id: id, place: place} do
      SharedMemory.write!(id, "last", place)
      read_only = SharedMemory.map_region!(id, [access_mode: :read_only] ++ place)
      assert code(SharedMemory.seal(read_only)) == :permission_denied
      assert {:ok, 2} = SharedMemory.seal(SharedMemory.map_region!(id, place))
      assert code(SharedMemory.seal("nobody", place)) == :not_found
      assert code(SharedMemory.seal(%{})) == :invalid_argument
    end
  end
end
