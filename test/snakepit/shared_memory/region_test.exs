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

    for made_up <- [
          forged,
          %{region | reader: make_ref(), writer: make_ref()},
          %{region | reader: region.writer, writer: region.reader},
          %{region | reader: nil, writer: "x"},
          %{region | id: :atom},
          %{region | id: nil, reader: nil, writer: %{}},
          %{region | namespace: 5, dir: self()},
          %{region | ref: "x"}
        ] do
      broken = %{region | reader: made_up.reader, writer: made_up.writer}
      holds? = made_up.reader == region.reader

      for answer <- [
            SharedMemory.map_region(made_up),
            SharedMemory.unmap_region(made_up),
            SharedMemory.deallocate_region(made_up),
            SharedMemory.get_region_info(made_up),
            SharedMemory.history(made_up),
            SharedMemory.subscribe(made_up),
            SharedMemory.binary(made_up),
            SharedMemory.handle(made_up),
            SharedMemory.seal(made_up),
            SharedMemory.with_writer(made_up, & &1),
            SharedMemory.read(made_up, max_age: 1),
            SharedMemory.write(made_up, "x", offset: 0),
            if(holds?, do: :skipped, else: SharedMemory.read(broken)),
            if(holds?, do: :skipped, else: SharedMemory.write(broken, "x"))
          ],
          answer != :skipped do
        assert code(answer) == :invalid_argument
        assert elem(answer, 1).message =~ "not a region"
      end
    end

    assert code(SharedMemory.read(region)) == :empty
  end
end
