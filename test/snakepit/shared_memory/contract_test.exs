defmodule Snakepit.SharedMemory.ContractTest do
  # The API of the design document, call for call: modules, functions and arities, options, keys of
  # the configuration, and the form of what is answered. Where ours differs on purpose,
  # docs/requirements.md says why, and the test here says in what.
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.{Config, Manager, Platform, ReferenceCounter}
  alias Snakepit.SharedMemory.{SecurityController, Stats}

  doctest Manager
  doctest SecurityController

  # Functions and arities of the design document, without the callbacks of a GenServer.
  @functions %{
    Manager => [
      allocate_region: 1,
      allocate_region: 2,
      map_region: 1,
      map_region: 2,
      unmap_region: 1,
      deallocate_region: 1,
      get_region_info: 1,
      list_regions: 0,
      list_regions: 1,
      cleanup_regions: 0,
      cleanup_regions: 1
    ],
    ReferenceCounter => [increment: 2, decrement: 2, get_count: 1, get_references: 1],
    SecurityController => [
      validate_access: 3,
      apply_security_policy: 3,
      secure_cleanup: 3
    ],
    Platform => [detect_platform: 0, get_implementation: 1],
    Platform.Linux => [allocate: 3, map: 2, unmap: 2, deallocate: 1, get_info: 1],
    Platform.MacOS => [allocate: 3, map: 2, unmap: 2, deallocate: 1, get_info: 1],
    Platform.Windows => [allocate: 3, map: 2, unmap: 2, deallocate: 1, get_info: 1],
    Error => [handle_error: 3]
  }

  test "every function of the design document, with its arities" do
    for {module, functions} <- @functions do
      Code.ensure_loaded!(module)

      for {name, arity} <- functions do
        assert function_exported?(module, name, arity), "#{inspect(module)}.#{name}/#{arity}"
      end
    end

    # Under the design's own name of the whole nothing else is promised.
    assert Manager.__info__(:functions) == Enum.sort(@functions[Manager])
  end

  test "counts and calls need no process of theirs, so there is none to start" do
    for module <- [Manager, ReferenceCounter] do
      refute function_exported?(module, :start_link, 1)
      refute function_exported?(module, :handle_call, 3)
    end
  end

  test "what there is of a region is its info; a Region is what a process holds", %{place: place} do
    info = place |> then(&SharedMemory.allocate_region!(4096, &1)) |> info(place)

    # The design's fields of Region, each of them told; but no address, for nobody may use one.
    for field <- ~w(id size created_at last_accessed access_count reference_count owner_pid
                    platform_handle permissions security_level cleanup_policy metadata)a do
      assert Map.has_key?(info, field)
    end

    refute Map.has_key?(info, :mapped_addresses)
    assert %{access_count: 0, reference_count: 1, metadata: %{}} = info
    assert %{security_level: :standard, cleanup_policy: :automatic} = info
    assert info.permissions == %{owner: :read_write, group: :none, other: :none}

    region = SharedMemory.map_region!(info.id, place)

    shown = Map.keys(Map.from_struct(region)) -- ~w(ref reader writer namespace dir)a
    assert Enum.sort(shown) == ~w(access_mode id mapped_by size)a
  end

  defp info(id, place), do: SharedMemory.get_region_info!(id, place)

  test "the statistics have every field of the design document" do
    assert {:ok, %Stats{} = stats} = SharedMemory.stats()

    for count <- ~w(total_allocations total_deallocations active_regions
                    total_memory_allocated)a do
      assert is_integer(Map.fetch!(stats, count))
    end

    # Lists of times would grow for ever: each is a summary.
    for times <- ~w(allocation_times mapping_times cleanup_times)a do
      assert %{count: _, p50: _, p99: _, max: _} = Map.fetch!(stats, times)
    end

    assert is_map(stats.error_counts)
    assert %DateTime{} = stats.last_updated
  end

  describe "errors" do
    @types ~w(allocation_failed mapping_failed permission_denied region_not_found
              memory_limit_exceeded platform_error security_violation corruption_detected
              cleanup_failed)a

    test "have the context of the design document" do
      assert {:error, error} = SharedMemory.read("nobody")

      assert %{region: "nobody", operation: :read, platform: :linux, additional_info: %{}} = error

      assert error.process_id == self()
      assert %DateTime{} = error.timestamp
    end

    test "of others become one of ours, with class, context and remedy" do
      moment = ~U[2024-02-29 12:00:00Z]
      owner = spawn(fn -> :ok end)

      context = %{
        region_id: "r",
        operation: :frobnicate,
        platform: :linux,
        process_id: owner,
        timestamp: moment,
        additional_info: %{tries: 3}
      }

      for type <- @types do
        assert {:error, %Error{} = error} = Error.handle_error(type, context, :eperm)
        expected = if type == :security_violation, do: :permission_denied, else: type
        assert Error.class(error) == expected
        assert error.code in Error.codes()
        assert error.message =~ ":eperm"
        assert is_binary(error.remedy)
        assert %{region: "r", platform: :linux, process_id: ^owner, timestamp: ^moment} = error
        assert error.additional_info == %{tries: 3, original: :eperm}
      end
    end

    test "at a limit say what to do, and one of ours stays what it is" do
      for {limit, named} <- [
            memory_limit_exceeded: ":max_total_memory",
            region_limit_exceeded: ":max_regions"
          ] do
        assert {:error, error} = Error.handle_error(:allocation_failed, %{}, limit)
        assert error.code == :resource_exhausted
        assert error.remedy =~ named
        assert error.operation == :allocate_region
      end

      {:error, ours} = SharedMemory.read("nobody")
      assert {:error, ^ours} = Error.handle_error(:mapping_failed, [region_id: "x"], ours)
    end

    test "that are not described as they should be are an error themselves" do
      for {type, context} <- [
            {:on_fire, %{}},
            {nil, %{}},
            {"platform_error", %{}},
            {:platform_error, :context},
            {:platform_error, %{region: "x"}},
            {:platform_error, %{region_id: 1}},
            {:platform_error, %{timestamp: "now"}},
            {:platform_error, %{timestamp: %{}}},
            {:platform_error, [1]}
          ] do
        assert {:error, error} = Error.handle_error(type, context, :eperm)
        assert {error.code, error.operation} == {:invalid_option, :handle_error}
      end
    end
  end

  test "R14.3 what waits for encryption, signatures and access control is refused by name", %{
    place: place,
    dir: dir
  } do
    for level <- [:high, :maximum] do
      for answer <- [
            SharedMemory.allocate_region(4096, [security_level: level] ++ place),
            SharedMemory.share("x", [security_level: level] ++ place),
            SecurityController.apply_security_policy("r", "x", level),
            SecurityController.secure_cleanup("r", "x", level),
            Config.new(security_level: level)
          ] do
        assert {:error, %Error{code: :unsupported} = error} = answer
        assert error.message =~ inspect(level)
        assert error.remedy =~ ":standard"
      end
    end

    assert {:error, %Error{code: :unsupported} = error} =
             SecurityController.validate_access("r", self(), :read)

    assert error.message =~ "access control"
    assert error.remedy =~ ":permissions"
    assert SecurityController.apply_security_policy("r", "x", :standard) == {:ok, "x"}
    assert SecurityController.secure_cleanup("r", "x", :standard) == :ok

    for answer <- [
          SecurityController.apply_security_policy("r", "x", :low),
          SecurityController.apply_security_policy("r", :x, :standard),
          SecurityController.secure_cleanup("r", [], :standard)
        ] do
      assert code(answer) == :invalid_option
    end

    assert TestDir.leftovers(dir) == []
  end

  # Every key of both examples in the design document is one of ours; config_test.exs has the
  # examples as they are, and what of them is refused.
  test "every key of the configuration" do
    {:ok, config} = Config.new([])

    for key <- ~w(enabled max_regions max_region_size max_total_memory max_regions_per_process
                  cleanup_interval default_timeout allocation_strategy enable_defragmentation
                  security_level encryption_enabled audit_access secure_cleanup platform_options
                  telemetry_enabled performance_monitoring health_check_interval)a do
      assert Map.has_key?(config, key)
    end

    assert config.max_region_size == 1_073_741_824
    assert config.max_total_memory == 10_737_418_240
    assert config.security_level == :standard
  end

  test "a bare segment of the platform: options and answers", %{place: place} do
    linux = Platform.get_implementation(Platform.detect_platform())
    options = place |> Map.new() |> Map.put(:permissions, 0o600)
    assert {:ok, handle} = linux.allocate("bare", 4096, options)
    assert {:ok, mapping} = linux.map(handle, %{access_mode: :read_only})
    assert {:error, %Error{code: :unsupported}} = linux.map(handle, %{access_mode: :read_write})
    assert {:error, %Error{code: :invalid_option}} = linux.map(handle, %{access_mode: :write})

    assert {:ok,
            %{
              name: name,
              size: 4096,
              actual_size: actual,
              access_time: %DateTime{},
              modify_time: %DateTime{},
              permissions: 0o600
            }} = linux.get_info(handle)

    # The header, the control pages and the slots lie beside the value.
    assert actual > 4096
    assert actual == File.stat!(Path.join(place[:dir], name)).size
    assert :ok = linux.unmap(mapping, 4096)
    assert :ok = linux.deallocate(handle)
    assert {:error, %Error{code: :closed}} = linux.deallocate(handle)
    assert {:error, %Error{code: :not_found}} = linux.get_info(handle)
  end

  test "a region's life as in the design document, with its options and its info" do
    options = %{
      permissions: %{owner: :read_write, group: :read_only, other: :none},
      timeout: 3_600_000,
      security_level: :standard,
      access_mode: :read_write,
      cleanup_policy: :reference_counted,
      metadata: %{unit: "K"}
    }

    assert {:ok, id} = Manager.allocate_region(4096, options)
    assert is_binary(id)
    assert {:ok, %Region{id: ^id}} = Manager.map_region(id)

    assert {:ok, %Region{access_mode: :read_only}} =
             Manager.map_region(id, %{access_mode: :read_only})

    assert {:ok, info} = Manager.get_region_info(id)
    me = self()

    assert %{
             id: ^id,
             size: 4096,
             created_at: %DateTime{},
             last_accessed: %DateTime{},
             reference_count: 3,
             owner_pid: ^me,
             platform_handle: %{file: _},
             metadata: %{unit: "K"},
             permissions: %{owner: :read_write, group: :read_only, other: :none},
             cleanup_policy: :reference_counted
           } = info

    assert {:ok, regions} = Manager.list_regions()
    assert Enum.any?(regions, &(&1.id == id))
    assert {:ok, [%{id: ^id}]} = Manager.list_regions(%{owner: me})
    for _ <- 1..2, do: assert({:ok, ^id} = Manager.unmap_region(id))
    assert {:ok, %{removed: _, kept: _}} = Manager.cleanup_regions(%{dry_run: true})
    assert {:ok, %{removed: removed}} = Manager.cleanup_regions()
    refute Enum.any?(removed, &(&1.id == id))
    assert {:ok, ^id} = Manager.deallocate_region(id)
  end

  test "every failure is an error with code, region, operation and remedy" do
    for {call, operation} <- [
          {fn -> Manager.allocate_region(-1) end, :allocate_region},
          {fn -> Manager.allocate_region(4096, %{cleanup_policy: :no}) end, :allocate_region},
          {fn -> Manager.map_region("nobody") end, :map_region},
          {fn -> Manager.unmap_region("nobody") end, :unmap_region},
          {fn -> Manager.deallocate_region("nobody") end, :deallocate_region},
          {fn -> Manager.get_region_info("nobody") end, :get_region_info},
          {fn -> Manager.list_regions(%{no: 1}) end, :list_regions},
          {fn -> Manager.cleanup_regions(%{grace: -1}) end, :cleanup_regions}
        ] do
      assert {:error, %Error{code: code, operation: ^operation, remedy: remedy}} = call.()
      assert code in Error.codes()
      assert is_binary(remedy)
    end
  end
end
