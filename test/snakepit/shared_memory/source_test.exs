defmodule Snakepit.SharedMemory.SourceTest do
  # What can be shared: iodata, files and streams, and what is left of those that fail. Alone, for what they
  # take of the VM's memory is measured.
  use Snakepit.SharedMemory.Case, async: false

  @mib 1024 * 1024

  setup %{dir: dir} do
    path = Path.join(System.tmp_dir!(), "snakepit-#{Path.basename(dir)}")
    on_exit(fn -> File.rm(path) end)
    {:ok, path: path}
  end

  defp share!(data, place, options \\ []), do: SharedMemory.share!(data, options ++ place)
  defp share(data, place, options \\ []), do: SharedMemory.share(data, options ++ place)
  defp fetch!(handle, place), do: SharedMemory.fetch!(handle, place)

  defp binary_memory do
    :erlang.garbage_collect()
    :erlang.memory(:binary)
  end

  test "iodata is written without building a binary of it", %{place: place} do
    piece = :rand.bytes(@mib)
    data = [piece, ["x" | piece], List.duplicate(piece, 14)]
    whole = IO.iodata_to_binary(data)
    digest = :erlang.md5(whole)
    _ = whole
    handle = share!(data, place)
    assert handle["bytes"] == 16 * @mib + 1
    assert :erlang.md5(fetch!(handle, place)) == digest
  end

  describe "a file" do
    test "is read straight into the region", %{place: place, path: path} do
      for bytes <- [1, 4096, 5000, 3 * @mib + 17] do
        data = :rand.bytes(bytes)
        File.write!(path, data)
        handle = share!({:file, path}, place)
        assert {handle["format"], handle["bytes"]} == {"raw", bytes}
        assert fetch!(handle, place) == data
        SharedMemory.deallocate_region!(handle, place)
      end
    end

    test "adds no memory to the VM", %{place: place, path: path} do
      File.write!(path, :binary.copy(<<7>>, 32 * @mib))
      before = binary_memory()
      handle = share!({:file, String.to_charlist(path)}, place, dtype: :f32)
      assert handle["shape"] == [8 * @mib]
      assert binary_memory() - before < @mib
    end

    test "that is an array, by dtype and shape", %{place: place, path: path} do
      File.write!(path, <<1::32-little, 2::32-little, 3::32-little, 4::32-little>>)
      handle = share!({:file, path}, place, dtype: :u32, shape: [2, 2], integrity: :crc32c)
      assert %{"dtype" => "<u4", "shape" => [2, 2], "format" => "numpy"} = handle
      assert code(share({:file, path}, place, dtype: :u64, shape: [3])) == :invalid_option
      assert share!({:file, path}, place, format: :arrow_ipc)["format"] == "arrow_ipc"
    end

    test "that is none: a named error, and nothing created", context do
      %{place: place, path: path, dir: dir} = context
      assert code(share({:file, path}, place)) == :io
      assert code(share({:file, dir}, place)) == :io
      assert code(share({:file, "/dev/zero"}, place)) == :io
      File.write!(path, "")

      for nothing <- [path, "/proc/self/maps"] do
        assert {:error, %{code: :invalid_size} = error} = share({:file, nothing}, place)
        assert error.message == "nothing to share: there are 0 bytes"
      end

      {_, 0} = System.cmd("mkfifo", [path <> ".fifo"])
      on_exit(fn -> File.rm(path <> ".fifo") end)
      assert code(share({:file, path <> ".fifo"}, place)) == :io

      for path <- [nil, 1, %{}, [0xD800], ["a" | "b"], "nul\0", <<255>>] do
        assert {:error, %Error{code: code}} = share({:file, path}, place)
        assert code in [:io, :invalid_option]
      end

      assert code(share({:file, path}, place, size: 4)) == :invalid_option
      assert TestDir.leftovers(dir) == []
    end

    test "larger than a region may be", %{place: place, path: path, dir: dir} do
      File.open!(path, [:write], fn file -> :file.pwrite(file, 2_000_000_000, "x") end)
      assert code(share({:file, path}, place)) == :invalid_size
      assert TestDir.leftovers(dir) == []
    end
  end

  test "a small term that stands for more than anybody can walk through is refused", %{
    place: place,
    dir: dir
  } do
    endless = fn last -> Enum.reduce(1..64, last, fn _, list -> [list, list] end) end

    for {source, options} <- [
          {endless.("x"), []},
          {endless.([]), [dtype: :u8]},
          {{:stream, [endless.("x")]}, []}
        ] do
      assert {:error, %{code: :invalid_option} = error} = share(source, place, options)
      assert error.message =~ "flatten it first"
    end

    assert TestDir.leftovers(dir) == []
  end

  describe "a stream" do
    test "of known length", %{place: place} do
      pieces = for n <- 1..100, do: [<<n>>, List.duplicate(n, rem(n, 7))]
      stream = Stream.map(pieces, & &1)
      handle = share!({:stream, stream}, place, size: 1000, name: "streamed")
      assert handle["name"] == "streamed"
      assert fetch!(handle, place) == IO.iodata_to_binary(pieces)
      # The size is the most that it may have.
      assert handle["bytes"] == IO.iodata_length(pieces)
      assert SharedMemory.get_region_info!(handle, place).size == 4096
    end

    test "of unknown length grows", %{place: place, dir: dir} do
      for {count, bytes} <- [{1, 1}, {3, @mib}, {7, @mib - 1}, {50, 300_000}] do
        pieces = for _ <- 1..count, do: :rand.bytes(bytes)
        handle = share!({:stream, pieces}, place, dtype: :u8)
        assert handle["shape"] == [count * bytes]
        assert fetch!(handle, place) == IO.iodata_to_binary(pieces)
        # What it outgrew has gone.
        assert [_file, _meta] = TestDir.leftovers(dir) -- pool_files(dir)
        SharedMemory.deallocate_region!(handle, place)
      end
    end

    test "of pieces larger than all before", %{place: place} do
      pieces = ["a", :binary.copy("b", 5 * @mib), "c"]
      assert fetch!(share!({:stream, pieces}, place), place) == IO.iodata_to_binary(pieces)
    end

    test "of the lines of a file", %{place: place, path: path} do
      File.write!(path, Enum.map_join(1..10_000, "\n", &"line #{&1}"))
      handle = share!({:stream, File.stream!(path)}, place)
      assert fetch!(handle, place) == File.read!(path)
    end

    test "that raises, throws, exits or is wrong leaves nothing", %{place: place, dir: dir} do
      broken = fn break -> Stream.map(1..5, &if(&1 == 4, do: break.(), else: "piece")) end
      bad = &share({:stream, broken.(&1)}, place)
      assert_raise RuntimeError, "broken", fn -> bad.(fn -> raise "broken" end) end
      assert catch_throw(bad.(fn -> throw(:ball) end)) == :ball
      assert catch_exit(bad.(fn -> exit(:gone) end)) == :gone
      assert code(bad.(fn -> :atom end)) == :invalid_argument
      assert code(bad.(fn -> [300] end)) == :invalid_argument
      assert code(share({:stream, []}, place)) == :out_of_bounds
      assert code(share({:stream, ["", []]}, place)) == :out_of_bounds
      assert code(share({:stream, 7}, place)) == :invalid_option
      assert code(share({:stream, ["abc"]}, place, size: 2)) == :out_of_bounds
      assert code(share({:stream, [:binary.copy("x", 4097)]}, place, size: 2)) == :out_of_bounds
      assert code(share({:stream, ["abc"]}, place, name: "named")) == :invalid_option
      assert code(share({:stream, ["abc"]}, place, dtype: :u16)) == :invalid_option
      for size <- [0, -1, "1", 0x4000_0001], do: assert(bad_size(size, place) == :invalid_option)

      SharedMemory.list_regions!(place)
      |> Enum.each(&SharedMemory.deallocate_region!(&1.id, place))

      assert TestDir.leftovers(dir) -- pool_files(dir) == []
    end

    test "whose process is killed leaves nothing", %{place: place, dir: dir} do
      test = self()

      {:ok, pid} =
        Task.start(fn ->
          share!({:stream, Stream.each(1..3, fn _ -> wait(test) end)}, place)
        end)

      assert_receive {:waiting, ^pid}, 30_000
      assert TestDir.leftovers(dir) != []
      kill(pid)
      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end

    test "in a stream", %{place: place} do
      inner = Stream.map(1..3, fn n -> fetch!(share!({:stream, ["#{n}"]}, place), place) end)
      assert fetch!(share!({:stream, inner}, place), place) == "123"
    end
  end

  defp bad_size(size, place), do: code(share({:stream, ["abc"]}, place, size: size))

  defp wait(test) do
    send(test, {:waiting, self()})
    receive do: (:never -> :ok)
  end

  defp pool_files(dir), do: Enum.filter(File.ls!(dir), &(&1 =~ ".pool."))

  test "a ttl is the time without use after which it goes", %{place: place, dir: dir} do
    handle = share!("short", place, ttl: 50)
    assert SharedMemory.get_region_info!(handle, place).timeout == 50
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    assert code(SharedMemory.fetch(handle, place)) == :not_found

    for options <- [[ttl: 0], [ttl: "1"], [ttl: 5, timeout: 5], [tll: 5]] do
      assert code(share("x", place, options)) == :invalid_option
    end

    {:error, error} = share("x", place, tll: 5)
    assert error.message =~ "did you mean :ttl?"
  end
end
