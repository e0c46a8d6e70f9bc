defmodule Snakepit.SharedMemory.PinTest do
  use Snakepit.SharedMemory.Case, async: true

  setup %{place: place} do
    id = SharedMemory.allocate_region!(4096, [slots: 3] ++ place)
    {:ok, id: id}
  end

  defp in_place?(id, place) do
    {:ok, reader} = Native.attach(native(place, id))
    {:ok, {_binary, in_place?}} = Native.reader_pin(reader)
    {:ok, _} = Native.close_reader(reader)
    in_place?
  end

  test "a pinned binary stays as it is while the region is written", %{id: id, place: place} do
    assert code(SharedMemory.binary(id, [pin: true] ++ place)) == :empty
    value = String.duplicate("first ", 500)
    SharedMemory.write!(id, value, place)
    assert code(SharedMemory.binary(id, place)) == :not_sealed
    pinned = SharedMemory.binary!(id, [pin: true] ++ place)
    for n <- 1..5000, do: SharedMemory.write!(id, "later #{n}", place)
    assert pinned == value
    assert SharedMemory.read!(id, place) == "later 5000"
    SharedMemory.deallocate_region!(id, place)
    assert pinned == value
  end

  test "by id, by mapping, and of a sealed region; an option that is none", %{
    id: id,
    place: place
  } do
    SharedMemory.write!(id, "value", place)
    region = SharedMemory.map_region!(id, place)
    assert SharedMemory.binary!(region, pin: true) == "value"
    SharedMemory.seal!(region)
    assert SharedMemory.binary!(region, pin: true) == "value"
    assert SharedMemory.binary!(id, [pin: true] ++ place) == "value"
    assert code(SharedMemory.binary(id, [pin: 1] ++ place)) == :invalid_option
    SharedMemory.deallocate_region!(id, place)
  end

  test "it is given back with the last part of the binary, or its process", %{
    id: id,
    place: place
  } do
    SharedMemory.write!(id, String.duplicate("x", 1000), place)
    assert in_place?(id, place)

    {part, holder} =
      in_process(fn ->
        binary = SharedMemory.binary!(id, [pin: true] ++ place)
        binary_part(binary, 100, 500)
      end)

    kill(holder)
    SharedMemory.write!(id, "next", place)
    # Of three slots one is pinned, by the part that we hold.
    refute in_place?(id, place)
    assert part == String.duplicate("x", 500)

    # What is held where it is used no more is collected with the rest.
    assert eventually(fn ->
             :erlang.garbage_collect()
             in_place?(id, place)
           end)

    SharedMemory.deallocate_region!(id, place)
  end

  test "no copy: a pinned value of 64 MiB takes no memory of the VM", %{place: place} do
    size = 64 * 1024 * 1024
    id = SharedMemory.allocate_region!(size, [slots: 3] ++ place)
    SharedMemory.write!(id, :binary.copy(<<7>>, size), place)
    :erlang.garbage_collect()
    before = :erlang.memory(:binary)
    binary = SharedMemory.binary!(id, [pin: true] ++ place)
    assert byte_size(binary) == size
    assert :erlang.memory(:binary) - before < div(size, 8)
    assert :binary.last(binary) == 7
    SharedMemory.deallocate_region!(id, place)
  end

  test "many processes pin what one writes", %{id: id, place: place} do
    SharedMemory.write!(id, value(0), place)
    region = SharedMemory.map_region!(id, place)
    test = self()

    readers =
      for _ <- 1..20 do
        spawn_link(fn ->
          for _ <- 1..200 do
            <<n::64, rest::binary>> = SharedMemory.binary!(region, pin: true)
            <<^rest::binary>> = binary_part(value(n), 8, 992)
          end

          send(test, {:done, self()})
        end)
      end

    for n <- 1..5000, do: SharedMemory.write!(id, value(n), place)
    for pid <- readers, do: assert_receive({:done, ^pid}, 30_000)
    SharedMemory.deallocate_region!(id, place)
  end

  defp value(n), do: <<n::64>> <> :binary.copy(<<n::8>>, 992)
end
