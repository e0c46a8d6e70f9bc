defmodule Snakepit.SharedMemory.ApplicationTest do
  # Starts and stops the application that every other test needs.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Janitor, Membership, ReferenceCounter}

  @moduletag :capture_log

  defp every_call(place) do
    [
      fn -> SharedMemory.allocate_region(4096, place) end,
      fn -> SharedMemory.map_region("x", place) end,
      fn -> SharedMemory.unmap_region("x", place) end,
      fn -> SharedMemory.deallocate_region("x", place) end,
      fn -> SharedMemory.write("x", "y", place) end,
      fn -> SharedMemory.write("x", "y") end,
      fn -> SharedMemory.read("x", place) end,
      fn -> SharedMemory.read("x") end,
      fn -> SharedMemory.seal("x", place) end,
      fn -> SharedMemory.binary("x", place) end,
      fn -> SharedMemory.share("x", place) end,
      fn -> SharedMemory.handle("x", place) end,
      fn -> SharedMemory.fetch(%{"__snakepit_shm__" => 1}, place) end,
      fn -> SharedMemory.get_region_info("x", place) end,
      fn -> SharedMemory.list_regions(place) end,
      fn -> SharedMemory.cleanup_regions(place) end,
      fn -> SharedMemory.health_check(place) end,
      fn -> SharedMemory.with_writer("x", place, fn region -> region end) end,
      fn -> SharedMemory.subscribe("x", place) end,
      fn -> SharedMemory.reconfigure(grace: 1) end,
      fn -> SharedMemory.release_session("x") end,
      fn -> SharedMemory.release_worker("x") end,
      fn -> ReferenceCounter.increment("x", self(), place) end,
      fn -> ReferenceCounter.decrement("x", self(), place) end,
      fn -> ReferenceCounter.get_count("x", place) end,
      fn -> ReferenceCounter.get_references("x", place) end,
      fn -> SharedMemory.stats() end,
      fn -> SharedMemory.reset_stats() end,
      fn -> SharedMemory.history("x", place) end,
      fn -> SharedMemory.recommendations() end
    ]
  end

  test "not started: every call says so, none exits", %{place: place, dir: dir} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "x", place)
    region = SharedMemory.map_region!(id, place)
    :ok = Application.stop(:snakepit_shared_memory)

    try do
      for call <- every_call(place) do
        assert {:error, %Error{code: :not_started, remedy: remedy}} = call.()
        assert remedy =~ "ensure_all_started"
      end

      assert TestDir.leftovers(dir) == []
      assert code(SharedMemory.read(region)) == :closed
      assert code(SharedMemory.write(region, "y")) == :closed
      assert code(SharedMemory.unmap_region(region)) == :not_started
    after
      {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    end

    assert {:ok, _} = SharedMemory.allocate_region(4096, place)
  end

  test "a directory written with a slash at its end: one region, whatever names it", %{dir: dir} do
    with_config([dir: dir <> "/"], fn ->
      id = SharedMemory.allocate_region!(4096)
      region = SharedMemory.map_region!(id)

      for {name, opts} <- [{region, []}, {id, []}, {id, [dir: dir]}, {id, [dir: dir <> "/"]}] do
        assert SharedMemory.get_region_info!(name, opts).owner_pid == self()
        assert {:ok, [_ | _]} = SharedMemory.history(name, opts)
      end

      assert [%{id: ^id}] = SharedMemory.list_regions!(local: true, dir: dir <> "/")
      assert {:ok, ^id} = SharedMemory.deallocate_region(region)
      assert code(SharedMemory.read(id)) == :not_found
      assert {:ok, ^id} = SharedMemory.allocate_region(4096, name: id)
      SharedMemory.deallocate_region!(id)
    end)
  end

  test "enabled: false: every call says so, nothing runs", %{place: place} do
    with_config([enabled: false], fn ->
      for call <- every_call(place), do: assert(code(call.()) == :disabled)
      refute Process.whereis(Snakepit.SharedMemory.Registry)
    end)
  end

  test "a mistake in the configuration stops the start, and is named" do
    before = Application.get_env(:snakepit, :shared_memory)
    :ok = Application.stop(:snakepit_shared_memory)

    try do
      for {mistake, named} <- [
            {[max_regoins: 1], "did you mean :max_regions?"},
            {[dir: "/no/such/directory"], "option :dir"},
            {:none, "keyword list"}
          ] do
        Application.put_env(:snakepit, :shared_memory, mistake)
        assert {:error, reason} = Application.ensure_all_started(:snakepit_shared_memory)
        assert inspect(reason) =~ named
      end
    after
      restart(before)
    end
  end

  test "the directory and namespace of the configuration are the default" do
    id = SharedMemory.allocate_region!(4096)
    config = Application.get_env(:snakepit, :shared_memory)
    info = SharedMemory.get_region_info!(id)
    assert info.namespace == config[:namespace]
    assert File.exists?(Path.join(config[:dir], info.platform_handle.file))
    # The same place said in words is the same region.
    assert {:ok, 2} =
             SharedMemory.write(id, "x", namespace: config[:namespace], dir: config[:dir] <> "/")

    assert SharedMemory.read!(id) == "x"
    SharedMemory.deallocate_region!(id)
  end

  test "R2.5 limits: named error with what was needed, and room again afterwards", %{place: place} do
    with_config([max_regions: 3, max_region_size: 8192, max_total_memory: 65_536], fn ->
      assert {:error, error} = SharedMemory.allocate_region(12_288, place)
      assert error.code == :resource_exhausted
      assert error.message =~ ":max_region_size"
      assert error.message =~ "12288"

      [one | _] = for _ <- 1..3, do: SharedMemory.allocate_region!(4096, place)
      assert {:error, error} = SharedMemory.allocate_region(4096, place)
      assert error.code == :resource_exhausted
      assert error.message =~ ":max_regions"
      assert code(SharedMemory.share("x", place)) == :resource_exhausted

      SharedMemory.deallocate_region!(one, place)
      # 32 KiB are held by two regions of four slots; 8 KiB in five slots make 40.
      assert {:error, error} = SharedMemory.allocate_region(8192, [slots: 5] ++ place)
      assert error.message =~ ":max_total_memory"
      assert error.message =~ "40960"
      assert error.message =~ "32768"
      assert {:ok, _} = SharedMemory.allocate_region(8192, [slots: 4] ++ place)
    end)
  end

  test "R12.3 limits hold when many allocate at once", %{place: place} do
    with_config([max_regions: 10], fn ->
      owner = [owner: self()] ++ place

      answers =
        1..60
        |> Task.async_stream(fn _ -> SharedMemory.allocate_region(4096, owner) end,
          max_concurrency: 60
        )
        |> Enum.map(fn {:ok, answer} -> answer end)

      assert Enum.count(answers, &match?({:ok, _}, &1)) == 10
      assert Enum.count(answers, &(code(&1) == :resource_exhausted)) == 50
    end)
  end

  test "a stop with regions of many owners leaves nothing", %{place: place, dir: dir} do
    owners =
      for _ <- 1..20 do
        {_, pid} =
          in_process(fn ->
            id = SharedMemory.allocate_region!(4096, place)
            SharedMemory.map_region!(id, place)
            SharedMemory.share!("x", place)
          end)

        pid
      end

    log = capture_log(fn -> :ok = Application.stop(:snakepit_shared_memory) end)
    refute log =~ "warning"
    assert TestDir.leftovers(dir) == []
    assert mappings(dir) |> Enum.reject(&(&1 =~ ".participants")) == []
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    Enum.each(owners, &kill/1)
  end

  test "a stop with bad rows in its tables gives back all others", %{place: place, dir: dir} do
    for n <- 1..20 do
      id = SharedMemory.allocate_region!(4096, [name: "r#{n}"] ++ place)
      SharedMemory.map_region!(id, place)
    end

    {:ok, writer} = Native.create(native(place, "foreign"))
    {:ok, :ok} = Native.release(writer)
    SharedMemory.map_region!("foreign", [access_mode: :read_write] ++ place)
    none = make_ref()

    for n <- 1..20 do
      :ets.insert(:persistent_term.get(:snakepit_shm_regions), {"bad#{n}", none, none})
      :ets.insert(:snakepit_shm_records, {"bad#{n}", :bad})
      :ets.insert(:snakepit_shm_mappings, {make_ref(), "bad", self(), none, nil, nil})
      :ets.insert(:snakepit_shm_mappings, {make_ref(), :bad})
      :ets.insert(:snakepit_shm_writers, {"bad#{n}", self(), none, none, :held})
      :ets.insert(:snakepit_shm_writers, {"worse#{n}"})
    end

    log = capture_log(fn -> :ok = Application.stop(:snakepit_shared_memory) end)

    try do
      assert log =~ "could not give back"
      assert {:ok, writer} = Native.attach_writer(native(place, "foreign"))
      {:ok, :ok} = Native.discard(writer)
      assert TestDir.leftovers(dir) == []
      assert mappings(dir) |> Enum.reject(&(&1 =~ ".participants")) == []
    after
      {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    end
  end

  test "the VM is registered while it runs, not anew for each region, and not after", %{dir: dir} do
    table = fn -> dir |> Path.join("registered.participants") |> File.read!() end

    with_config([namespace: "registered", dir: dir], fn ->
      # A killed holder is replaced; what it held is given back behind its back.
      old = Process.whereis(Membership)
      kill(old)
      assert eventually(fn -> Process.whereis(Membership) not in [nil, old] end)

      # The janitor's own registration would hide that there is none.
      :ok = Supervisor.terminate_child(Snakepit.SharedMemory.Supervisor, Janitor)
      assert eventually(fn -> File.ls!(dir) == ["registered.participants"] end)
      SharedMemory.allocate_region!(4096) |> SharedMemory.deallocate_region!()
      before = table.()
      assert before =~ "beam"

      for _ <- 1..10 do
        id = SharedMemory.allocate_region!(4096)
        SharedMemory.map_region!(id) |> SharedMemory.unmap_region!()
        SharedMemory.deallocate_region!(id)
      end

      assert table.() == before
    end)

    assert File.ls!(dir) == []
  end

  test "a script that ends leaves nothing behind", %{place: place, dir: dir} do
    program = """
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    place = #{inspect(place)}
    id = Snakepit.SharedMemory.allocate_region!(4096, place)
    Snakepit.SharedMemory.write!(id, "x", place)
    Snakepit.SharedMemory.share!("y", place)
    # As ExUnit does: what is registered first still finds the application running.
    System.at_exit(fn _ -> IO.puts("regions: \#{length(Snakepit.SharedMemory.list_regions!(place))}") end)
    """

    ebin = Application.app_dir(:snakepit_shared_memory, "ebin")
    lib = Path.dirname(Path.dirname(ebin))
    environment = [{"ERL_LIBS", lib}]

    assert {output, 0} =
             System.cmd("elixir", ["-e", program], env: environment, stderr_to_stdout: true)

    assert output =~ "regions: 2"
    assert TestDir.leftovers(dir) == []
  end
end
