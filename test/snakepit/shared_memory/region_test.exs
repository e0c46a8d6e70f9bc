defmodule Snakepit.SharedMemory.RegionTest do
  use Snakepit.SharedMemory.Case, async: true

  test "shows what a person wants to know, and no resource", %{place: place} do
    region =
      SharedMemory.map_region!(
        SharedMemory.allocate_region!(4096, [name: "shown"] ++ place),
        place
      )

    shown = inspect(region)
    assert shown =~ ~s(id: "shown")
    assert shown =~ "size: 4096"
    assert shown =~ "access_mode: :read_write"
    refute shown =~ "#Reference"
  end

  test "works in every process of the node as long as its own lives", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    {region, mapper} = in_process(fn -> SharedMemory.map_region!(id, place) end)
    {answer, other} = in_process(fn -> SharedMemory.write(region, "from another") end)
    assert answer == {:ok, 2}
    assert SharedMemory.read!(region) == "from another"
    kill(mapper)
    assert eventually(fn -> code(SharedMemory.read(region)) == :closed end)
    assert SharedMemory.read!(id, place) == "from another"
    kill(other)
  end

  test "a made-up one is refused, the VM lives", %{place: place} do
    region = SharedMemory.map_region!(SharedMemory.allocate_region!(4096, place), place)
    forged = %{region | reader: make_ref(), writer: make_ref(), ref: make_ref()}
    assert_raise ArgumentError, fn -> SharedMemory.read(forged) end
    assert code(SharedMemory.unmap_region(forged)) == :not_mapped
    assert code(SharedMemory.read(region)) == :empty
  end
end
