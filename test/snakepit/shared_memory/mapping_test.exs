defmodule Snakepit.SharedMemory.MappingTest do
  # What mapping a region costs, and what becomes of it when that is too much. Alone, for it measures.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.Foreign

  @moduletag timeout: 180_000
  @gib 1024 * 1024 * 1024

  # As large as it may be, without the memory.
  defp huge(place, name) do
    options = [name: name, slots: 1, reserve: :lazy]
    SharedMemory.allocate_region!(@gib, options ++ place)
  end

  # The best of many: what it takes when nobody else has the processor.
  defp best_us(times, fun) do
    1..times |> Enum.map(fn _ -> fun |> :timer.tc() |> elem(0) end) |> Enum.min()
  end

  test "R5.1 mapping takes less than a millisecond, up to 1 GiB", %{place: place} do
    for {id, size} <- [
          {SharedMemory.allocate_region!(4096, place), 4096},
          {huge(place, "huge"), @gib}
        ] do
      # By the region's own process, and as another process of the system would.
      best =
        best_us(50, fn ->
          region = SharedMemory.map_region!(id, place)
          assert region.size == size
          SharedMemory.unmap_region!(region)
        end)

      assert best < 1_000, "#{size} bytes took #{best} us"

      attached =
        best_us(50, fn ->
          {:ok, reader} = Native.attach(native(place, id))
          {:ok, :ok} = Native.close_reader(reader)
        end)

      assert attached < 1_000, "#{size} bytes took #{attached} us to attach"
    end
  end

  test "R5.3 no address space left: a named error, and smaller regions can be mapped", %{
    place: place
  } do
    huge(place, "huge")
    small = SharedMemory.allocate_region!(4096, [name: "small"] ++ place)
    SharedMemory.write!(small, "small", place)
    peer = Foreign.start(place)

    {output, 0} = System.cmd("sh", ["-c", "grep VmSize /proc/#{peer.os_pid}/status | tr -dc 0-9"])

    limit = String.to_integer(output) * 1024 + div(@gib, 2)
    {_, 0} = System.cmd("prlimit", ["--as=#{limit}:unlimited", "--pid", peer.os_pid])

    assert {:error, %Error{code: :resource_exhausted} = error} =
             Foreign.run(peer, ~s|Snakepit.SharedMemory.map_region("huge")|)

    assert error.message =~ "address space"
    assert error.remedy != nil
    assert Foreign.run(peer, ~s|Snakepit.SharedMemory.read("small")|) == {:ok, "small"}

    # With the limit gone it is mapped: nothing of the attempt was kept.
    {_, 0} = System.cmd("prlimit", ["--as=unlimited", "--pid", peer.os_pid])

    assert {:ok, %{id: "huge", size: @gib}} =
             Foreign.run(peer, ~s|Snakepit.SharedMemory.map_region("huge")|)

    Foreign.stop(peer)
  end

  test "R5.4 every mapping of a region has the same value", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    ours = for mode <- [:read_write, :read_only], do: map(id, mode, place)
    {theirs, holder} = in_process(fn -> map(id, :read_write, place) end)
    peer = Foreign.start(place)
    said = inspect(id)
    {:ok, _} = Foreign.run(peer, "Snakepit.SharedMemory.map_region(#{said})")

    for {through, n} <- Enum.with_index([id, theirs, hd(ours)], 1) do
      value = "value #{n}"
      place_of = if is_binary(through), do: place, else: []
      assert {:ok, version} = SharedMemory.write(through, value, place_of)
      assert version == 2 * n

      for region <- [theirs | ours], do: assert(SharedMemory.read(region) == {:ok, value})
      assert SharedMemory.read(id, place) == {:ok, value}
      assert Foreign.run(peer, "Snakepit.SharedMemory.read(#{said})") == {:ok, value}
      assert SharedMemory.get_region_info!(id, place).version == version
    end

    kill(holder)
    Foreign.stop(peer)
    for region <- ours, do: assert(SharedMemory.read(region) == {:ok, "value 3"})
  end

  defp map(id, mode, place), do: SharedMemory.map_region!(id, [access_mode: mode] ++ place)

  test "R12.2 with a hundred times as many regions nothing takes longer", %{place: place} do
    options = [slots: 1, reserve: :lazy, max_readers: 1] ++ place
    few = for _ <- 1..30, do: SharedMemory.allocate_region!(4096, options)
    SharedMemory.write!(hd(few), "x", place)

    calls = [
      read: fn -> SharedMemory.read!(hd(few), place) end,
      info: fn -> SharedMemory.get_region_info!(hd(few), place) end,
      map: fn ->
        few |> hd() |> SharedMemory.map_region!(place) |> SharedMemory.unmap_region!()
      end,
      allocate: fn ->
        4096 |> SharedMemory.allocate_region!(options) |> SharedMemory.deallocate_region!(place)
      end
    ]

    measure = fn ->
      for {name, call} <- calls do
        {name, best_us(20, fn -> for(_ <- 1..10, do: call.()) end)}
      end
    end

    before = measure.()
    for _ <- 1..2970, do: SharedMemory.allocate_region!(4096, options)
    afterwards = measure.()

    # Of what went through all regions it would be a hundred.
    for {name, few} <- before do
      assert afterwards[name] <= few * 4 + 50, "#{name}: #{few} us, then #{afterwards[name]} us"
    end
  end
end
