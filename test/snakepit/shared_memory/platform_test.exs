defmodule Snakepit.SharedMemory.PlatformTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.Platform

  doctest Platform
  doctest Platform.Linux

  @callbacks [allocate: 3, map: 2, unmap: 2, deallocate: 1, get_info: 1, capabilities: 1]

  test "R1.5 every platform has the same calls, and this one is Linux" do
    assert Platform.detect_platform() == :linux
    assert Enum.sort(Platform.behaviour_info(:callbacks)) == Enum.sort(@callbacks)

    for platform <- [:linux, :macos, :windows, :other] do
      module = Platform.get_implementation(platform)
      assert Code.ensure_loaded?(module)
      for {name, arity} <- @callbacks, do: assert(function_exported?(module, name, arity))
    end

    for thing <- [:beos, "linux", nil, 1] do
      assert_raise ArgumentError, ~r/unknown platform/, fn ->
        Platform.get_implementation(thing)
      end
    end
  end

  test "R1.4 other platforms name their limitation, for every call" do
    for {platform, name} <- [macos: "macOS", windows: "Windows", other: "operating system"] do
      module = Platform.get_implementation(platform)

      for {function, arity} <- @callbacks do
        assert {:error, %Error{code: :unsupported} = error} =
                 apply(module, function, List.duplicate("x", arity))

        assert error.message =~ name
        assert error.message =~ "no platform layer"
        assert error.remedy =~ "Linux"
        assert error.operation != nil
      end
    end
  end

  test "R1.1 a bare segment, from its creation to its end", %{place: place, dir: dir} do
    options = Map.new(place)
    linux = Platform.Linux
    assert {:ok, handle} = linux.allocate("bare", 8192, Map.put(options, :permissions, 0o640))
    assert {:ok, %{id: "bare", size: 8192} = info} = linux.get_info(handle)
    file = Path.join(dir, info.platform_handle.file)
    assert Bitwise.band(File.stat!(file).mode, 0o777) == 0o640

    assert {:ok, mapping} = linux.map(handle, %{})
    assert :ok = linux.unmap(mapping, 8192)
    assert {:error, %Error{code: :closed}} = linux.unmap(mapping, 8192)
    assert :ok = linux.deallocate(handle)
    assert {:error, %Error{code: :closed}} = linux.deallocate(handle)
    assert {:error, %Error{code: :not_found}} = linux.map(handle, %{})
    assert TestDir.leftovers(dir) == []
  end

  test "nonsense is a named error", %{place: place} do
    linux = Platform.Linux
    options = Map.new(place)

    for answer <- [
          linux.allocate(:x, 4096, options),
          linux.allocate("x", "4096", options),
          linux.allocate("x", -1, options),
          linux.allocate("x", 0x1_0000_0000_0000_0000, options),
          linux.allocate("x", 5000, options),
          linux.allocate(".x", 4096, options),
          linux.allocate("x", 4096, %{}),
          linux.allocate("x", 4096, Map.delete(options, :dir)),
          linux.allocate("x", 4096, :none),
          linux.map(:handle, %{}),
          linux.unmap(:mapping, 4096),
          linux.unmap(make_ref(), 4096),
          linux.deallocate(nil),
          linux.get_info("x"),
          linux.capabilities(:dir),
          linux.capabilities("/no/such/directory")
        ] do
      assert {:error, %Error{message: message, remedy: remedy, operation: operation}} = answer
      assert is_binary(message) and is_binary(remedy) and operation != nil
    end
  end

  describe "R1.1 capabilities, each beside what the system itself says" do
    setup %{dir: dir} do
      {:ok, found} = Platform.Linux.capabilities(dir)
      assert File.ls!(dir) == []
      {:ok, found: found}
    end

    defp system(command, arguments) do
      {output, 0} = System.cmd(command, arguments)
      String.trim(output)
    end

    # Below a line with the column's name.
    defp df(column, path) do
      "df" |> system(["--output=#{column}", path]) |> String.split("\n") |> List.last()
    end

    test "the file system", %{found: found, dir: dir} do
      assert found.file_system == df("fstype", dir)
      assert found.mount_point == df("target", dir)
      assert found.memory_file_system == (found.file_system == "tmpfs")

      blocks = system("stat", ~w(-f -c) ++ ["%b %S", dir]) |> String.split()
      [blocks, unit] = Enum.map(blocks, &String.to_integer/1)
      assert found.space_total == blocks * unit
      assert found.space_available in 1..found.space_total
    end

    test "what is taken is no longer available", %{dir: dir, place: place} do
      megabytes = 64 * 1024 * 1024
      available = fn -> elem(Platform.Linux.capabilities(dir), 1).space_available end

      # Others take and give back as well; one look between them is enough.
      assert eventually(fn ->
               before = available.()
               id = SharedMemory.allocate_region!(megabytes, [slots: 1] ++ place)
               taken = before - available.()
               SharedMemory.deallocate_region!(id, place)
               taken in megabytes..(megabytes + 1024 * 1024)
             end)
    end

    test "a directory elsewhere, and one behind a link", %{dir: dir} do
      link = Path.join(dir, "link")
      File.ln_s!(dir, link)

      for path <- [File.cwd!(), link, dir <> "/../" <> Path.basename(dir)] do
        assert {:ok, found} = Platform.Linux.capabilities(path)
        assert found.dir == path
        assert found.file_system == df("fstype", path)
        assert found.mount_point == df("target", path)
      end

      File.rm!(link)

      assert {:error, %Error{operation: :capabilities}} =
               Platform.Linux.capabilities("/proc/self")
    end

    test "pages, locks, nodes", %{found: found} do
      assert found.page_size == system("getconf", ["PAGESIZE"]) |> String.to_integer()
      online = File.ls!("/sys/devices/system/node") |> Enum.filter(&(&1 =~ ~r/^node\d+$/))
      assert Enum.map(found.numa_nodes, &"node#{&1}") |> Enum.sort() == Enum.sort(online)

      case system("sh", ["-c", "ulimit -l"]) do
        "unlimited" -> assert found.locked_memory_limit == :unlimited
        kilobytes -> assert found.locked_memory_limit == String.to_integer(kilobytes) * 1024
      end
    end

    test "what this library is built on is there", %{found: found} do
      # Regions would not work here without the one, nor be cleaned up promptly without the other.
      assert found.file_locks
      assert found.unnamed_files
      assert found.process_descriptors
    end

    test "huge pages, by the mount's option", %{found: found} do
      mounts = File.read!("/proc/self/mountinfo") |> String.split("\n")
      mount = Enum.filter(mounts, &(&1 =~ " #{found.mount_point} ")) |> List.last()

      case Regex.run(~r/huge=(\w+)/, mount) do
        [_, option] when option != "never" -> assert found.huge_pages == option
        _ -> assert found.huge_pages == nil
      end
    end
  end
end
