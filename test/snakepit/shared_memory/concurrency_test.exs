defmodule Snakepit.SharedMemory.ConcurrencyTest do
  use Snakepit.SharedMemory.Case, async: true

  # A value that says of itself whether it is whole: one byte, repeated as often as its first
  # four bytes say.
  defp value(n, length), do: <<length::32, :binary.copy(<<rem(n, 251)>>, length)::binary>>

  defp whole?(<<length::32, byte, _::binary>> = value) do
    value == <<length::32, :binary.copy(<<byte>>, length)::binary>>
  end

  defp count_reads(region, options, expected, seen \\ 0)
  defp count_reads(_region, _options, expected, expected), do: expected

  defp count_reads(region, options, expected, seen) do
    case SharedMemory.read(region, options) do
      {:ok, value} ->
        true = whole?(value)
        count_reads(region, options, expected, seen + 1)

      {:error, %{code: :version_conflict}} ->
        count_reads(region, options, expected, seen)
    end
  end

  for {size, slots} <- [{64, 1}, {64, 4}, {4000, 1}, {4000, 2}, {300_000, 1}, {300_000, 4}] do
    test "R6.1 R6.2 no torn value: #{size} bytes, #{slots} slots, one writer, many readers", %{
      place: place
    } do
      {size, slots} = {unquote(size), unquote(slots)}
      id = SharedMemory.allocate_region!(512 * 1024, [slots: slots] ++ place)
      region = SharedMemory.map_region!(id, place)
      SharedMemory.write!(region, value(0, size))

      writer =
        spawn_link(fn ->
          Enum.each(Stream.iterate(1, &(&1 + 1)), fn n ->
            SharedMemory.write!(region, value(n, rem(n * 37, size) + 1))
            # A one-slot region leaves readers nothing while it is written without a pause.
            if slots == 1, do: :erlang.yield()
          end)
        end)

      readers =
        for n <- 1..4 do
          Task.async(fn ->
            if rem(n, 2) == 0,
              do: count_reads(region, [], 200),
              else: count_reads(id, place, 200)
          end)
        end

      assert Task.await_many(readers, 60_000) == [200, 200, 200, 200]
      Process.unlink(writer)
      kill(writer)
      assert whole?(SharedMemory.read!(region)) or slots == 1
    end
  end

  test "R6.3 many processes write one region: every write has a version of its own", %{
    place: place
  } do
    id = SharedMemory.allocate_region!(4096, place)

    versions =
      1..20
      |> Task.async_stream(
        fn n -> for k <- 1..100, do: SharedMemory.write!(id, value(n * k, 100), place) end,
        max_concurrency: 20
      )
      |> Enum.flat_map(fn {:ok, versions} -> versions end)

    assert Enum.sort(versions) == Enum.to_list(2..4000//2)
    assert whole?(SharedMemory.read!(id, place))
  end

  test "small and large writes of one region get along", %{place: place} do
    id = SharedMemory.allocate_region!(8 * 1024 * 1024, place)
    SharedMemory.write!(id, value(0, 10), place)

    writers =
      for size <- [10, 1000, 300_000, 8_000_000, 10, 8_000_000] do
        Task.async(fn -> for n <- 1..20, do: SharedMemory.write!(id, value(n, size), place) end)
      end

    reader = Task.async(fn -> count_reads(id, place, 50) end)
    versions = writers |> Task.await_many(60_000) |> List.flatten()
    assert Enum.sort(versions) == Enum.to_list(4..242//2)
    assert Task.await(reader, 60_000) == 50
  end

  test "many processes share and fetch at once", %{place: place} do
    1..200
    |> Task.async_stream(
      fn n ->
        data = :crypto.strong_rand_bytes(n * 500)
        handle = SharedMemory.share!(data, place)
        assert SharedMemory.fetch!(handle, dir: place[:dir]) == data
        SharedMemory.deallocate_region!(handle, dir: place[:dir])
        data == SharedMemory.fetch(handle, dir: place[:dir])
      end,
      max_concurrency: 16,
      timeout: 60_000
    )
    |> Enum.each(fn {:ok, gone} -> refute gone end)
  end
end
