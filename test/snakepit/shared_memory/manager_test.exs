defmodule Snakepit.SharedMemory.ManagerTest do
  # The API of the design document, call for call.
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.{Manager, ReferenceCounter}

  doctest Manager

  test "every function of the design document, with its arities, and no other" do
    assert Manager.__info__(:functions) == [
             allocate_region: 1,
             allocate_region: 2,
             cleanup_regions: 0,
             cleanup_regions: 1,
             deallocate_region: 1,
             get_region_info: 1,
             list_regions: 0,
             list_regions: 1,
             map_region: 1,
             map_region: 2,
             unmap_region: 1
           ]

    Code.ensure_loaded!(ReferenceCounter)

    for {function, arity} <- [increment: 2, decrement: 2, get_count: 1, get_references: 1] do
      assert function_exported?(ReferenceCounter, function, arity)
    end
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
