defmodule Snakepit.SharedMemory.BufferTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.{Buffer, Native}

  @size 1_048_576

  setup %{place: place} do
    id = SharedMemory.allocate_region!(@size, place)
    {:ok, id: id, region: SharedMemory.map_region!(id, place)}
  end

  defp value(n), do: :binary.copy(<<n::32>>, div(@size, 4))

  test "an older binary never changes, however many are read and collected", %{region: region} do
    buffer = SharedMemory.buffer!(@size, copies: 3)

    # Held for a while, some of them by a part of them alone.
    Enum.reduce(1..200, [], fn n, held ->
      SharedMemory.write!(region, value(n))
      binary = SharedMemory.read_into!(region, buffer)
      part = binary_part(binary, 4000, 400)
      kept = if rem(n, 3) == 0, do: {n, part, 400}, else: {n, binary, @size}
      held = Enum.take([kept | held], 1 + rem(n, 5))
      if rem(n, 7) == 0, do: :erlang.garbage_collect()

      for {n, binary, size} <- held do
        assert binary == :binary.copy(<<n::32>>, div(size, 4))
      end

      held
    end)

    assert Native.buffer_pieces(buffer.ref) == 3
  end

  test "memory is used again when nothing points into it", %{region: region} do
    SharedMemory.write!(region, value(7))
    buffer = SharedMemory.buffer!(@size, copies: 4)

    # Each in a process of its own, whose end lets go of what it has read.
    for _ <- 1..50 do
      task = Task.async(fn -> SharedMemory.read_into!(region, buffer) == value(7) end)
      monitor = Process.monitor(task.pid)
      assert Task.await(task)
      assert_receive {:DOWN, ^monitor, _, _, _}, 60_000
    end

    assert Native.buffer_pieces(buffer.ref) <= 2
  end

  test "while all copies are in use, and when a value is longer, it has its own memory", %{
    region: region
  } do
    buffer = SharedMemory.buffer!(1000, copies: 2)

    binaries =
      for n <- 1..10 do
        SharedMemory.write!(region, :binary.copy(<<n>>, 1000))
        SharedMemory.read_into!(region, buffer)
      end

    assert binaries == for(n <- 1..10, do: :binary.copy(<<n>>, 1000))
    assert Native.buffer_pieces(buffer.ref) == 2

    SharedMemory.write!(region, value(3))
    assert SharedMemory.read_into!(region, buffer) == value(3)
    SharedMemory.write!(region, "short")
    assert SharedMemory.read_into!(region, SharedMemory.buffer!(@size)) == "short"
  end

  test "binaries outlive the buffer, the mapping and the region", %{
    id: id,
    region: region,
    place: place
  } do
    SharedMemory.write!(region, value(9))

    binary =
      Task.async(fn -> SharedMemory.read_into!(region, SharedMemory.buffer!(@size)) end)
      |> Task.await()

    SharedMemory.unmap_region!(region)
    SharedMemory.deallocate_region!(id, place)
    :erlang.garbage_collect()
    assert binary == value(9)
  end

  test "many processes share one", %{region: region} do
    SharedMemory.write!(region, value(5))
    buffer = SharedMemory.buffer!(@size, copies: 2)

    1..8
    |> Task.async_stream(
      fn _ ->
        for _ <- 1..20, do: assert(SharedMemory.read_into!(region, buffer) == value(5))
      end,
      timeout: :infinity
    )
    |> Stream.run()

    assert Native.buffer_pieces(buffer.ref) == 2
  end

  test "counted, by id, with an age", %{id: id, region: region, place: place} do
    buffer = SharedMemory.buffer!(@size)
    assert code(SharedMemory.read_into(region, buffer)) == :empty
    SharedMemory.write!(region, "12345")
    assert SharedMemory.read_into(id, buffer, place) == {:ok, "12345"}
    assert SharedMemory.read_into(region, buffer, max_age: 60_000) == {:ok, "12345"}
    assert %{reads: 2, bytes_read: 10} = SharedMemory.get_region_info!(id, place)
    SharedMemory.unmap_region!(region)
    assert code(SharedMemory.read_into(region, buffer)) == :closed
  end

  test "what is none", %{region: region} do
    buffer = SharedMemory.buffer!(4096)

    for size <- [0, -1, 1_073_741_825, 1.5, nil, "4096"] do
      assert code(SharedMemory.buffer(size)) == :invalid_argument
    end

    for copies <- [0, 65, nil, :many] do
      assert code(SharedMemory.buffer(1, copies: copies)) == :invalid_option
    end

    for bad <- [nil, buffer.ref, %{buffer | ref: make_ref()}, %{buffer | ref: region.reader}] do
      assert code(SharedMemory.read_into(region, bad)) == :invalid_argument
    end

    assert code(SharedMemory.read_into(%{region | reader: make_ref()}, buffer)) ==
             :invalid_argument

    assert code(SharedMemory.read_into(region, buffer, offset: 1)) == :invalid_option
    assert %Buffer{size: 4096, copies: 4} = buffer
  end
end
