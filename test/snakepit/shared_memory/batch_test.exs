defmodule Snakepit.SharedMemory.BatchTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.{Error, Native}

  defp mapped(place, size \\ 4096) do
    size |> SharedMemory.allocate_region!(place) |> SharedMemory.map_region!(place)
  end

  test "a hundred mappings are written and read in order", %{place: place} do
    regions = for _ <- 1..100, do: mapped(place)
    values = for i <- 1..100, do: String.duplicate("#{i},", 1 + rem(i * 7, 40))

    assert SharedMemory.write_many!(Enum.zip(regions, values)) == List.duplicate(2, 100)
    assert SharedMemory.read_many!(regions) == values
    assert SharedMemory.read_many(regions) == {:ok, Enum.map(values, &{:ok, &1})}
    assert SharedMemory.read_many([]) == {:ok, []}
    assert SharedMemory.write_many([]) == {:ok, []}
  end

  test "regions by id, read before or not, and options for all of them", %{place: place} do
    ids = for i <- 1..3, do: SharedMemory.allocate_region!(4096, [name: "batch-#{i}"] ++ place)

    assert SharedMemory.write_many(Enum.map(ids, &{&1, ["id ", &1]}), place) ==
             {:ok, [ok: 2, ok: 2, ok: 2]}

    for _ <- 1..2 do
      assert SharedMemory.read_many!(ids, place) == Enum.map(ids, &("id " <> &1))
    end

    assert SharedMemory.read_many!(ids, [offset: 3, length: 5] ++ place) ==
             List.duplicate("batch", 3)
  end

  test "each has its own answer, and that of a single call", %{place: place} do
    [good, empty, sealed, closed] = for _ <- 1..4, do: mapped(place)
    SharedMemory.write!(good, "value")
    SharedMemory.write!(sealed, "for ever")
    SharedMemory.seal!(sealed)
    SharedMemory.write!(closed, "gone")
    SharedMemory.unmap_region!(closed)
    forged = %{good | reader: make_ref(), writer: make_ref()}
    regions = [good, empty, closed, "no-such", forged, 42, nil, sealed, good]

    assert {:ok, answers} = SharedMemory.read_many(regions)
    assert Enum.map(answers, &shape/1) == Enum.map(regions, &shape(SharedMemory.read(&1)))
    assert List.first(answers) == {:ok, "value"}
    assert List.last(answers) == {:ok, "value"}
    assert code(Enum.at(answers, 1)) == :empty
    assert code(Enum.at(answers, 2)) == :closed
    assert_raise Error, fn -> SharedMemory.read_many!(regions) end

    values =
      [{good, "x"}, {sealed, "x"}, {closed, "x"}, {"no-such", "x"}, {forged, "x"}] ++
        [{42, "x"}, {good, ""}, {good, :no}, {good, [256]}, {good, <<1::3>>}] ++
        [{good, :binary.copy("x", 4097)}, {good, [:binary.copy("x", 4000), "y" | "z"]}]

    assert {:ok, written} = SharedMemory.write_many(values)
    singly = Enum.map(values, fn {region, data} -> SharedMemory.write(region, data) end)
    assert Enum.map(written, &shape/1) == Enum.map(singly, &shape/1)
    assert SharedMemory.read!(good) == :binary.copy("x", 4000) <> "yz"
  end

  defp shape({:ok, value}) when is_binary(value), do: {:ok, value}
  defp shape({:ok, _version}), do: :ok
  defp shape({:error, %Error{} = error}), do: {error.code, error.message, error.remedy}

  test "values of one region are written one after the other", %{place: place} do
    region = mapped(place)
    id = region.id
    values = for i <- 1..500, do: {region, "#{i}"}

    assert {:ok, answers} = SharedMemory.write_many(values)
    assert answers == for(i <- 1..500, do: {:ok, 2 * i})
    assert SharedMemory.read!(region) == "500"

    # What takes a way of its own in between does not overtake.
    mixed = [{region, "a"}, {id, :no}, {region, "b"}, {region, [300]}, {region, "c"}]

    assert {:ok, [{:ok, 1002}, {:error, _}, {:ok, 1004}, {:error, _}, {:ok, 1006}]} =
             SharedMemory.write_many(mixed)

    assert SharedMemory.read!(region) == "c"
  end

  test "a great total goes to a dirty scheduler, whole", %{place: place} do
    regions = for _ <- 1..5, do: mapped(place, 131_072)
    values = for i <- 1..5, do: :binary.copy(<<i>>, 131_072)
    readers = Enum.map(regions, & &1.reader)

    assert Native.write_many(Enum.map(regions, & &1.writer), values) == {:error, :dirty}
    assert Enum.map(readers, &Native.reader_version/1) == List.duplicate({:ok, 0}, 5)
    assert SharedMemory.write_many!(Enum.zip(regions, values)) == List.duplicate(2, 5)
    assert Native.read_many(readers) == {:error, :dirty}
    assert SharedMemory.read_many!(regions) == values

    # So do many: one region, five thousand times.
    region = mapped(place)
    many = List.duplicate(region, 5000)

    assert Native.write_many(Enum.map(many, & &1.writer), List.duplicate("x", 5000)) ==
             {:error, :dirty}

    assert SharedMemory.write_many!(Enum.map(many, &{&1, "x"})) == Enum.map(1..5000, &(2 * &1))
    assert SharedMemory.read_many!(many) == List.duplicate("x", 5000)

    # A value that fits with others that do not is not written twice.
    lists = for _ <- 1..3, do: {region, List.duplicate([1], 3000)}
    assert SharedMemory.write_many!(lists) == [10_002, 10_004, 10_006]
  end

  test "the right to write is looked at", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    region = SharedMemory.map_region!(id, place)

    {:ok, answer} =
      SharedMemory.with_writer(id, place, fn _writer ->
        SharedMemory.write!(region, "mine")
        Task.async(fn -> SharedMemory.write_many([{region, "theirs"}]) end) |> Task.await()
      end)

    assert {:ok, [{:error, %Error{code: :segment_busy}}]} = answer
    assert SharedMemory.read!(region) == "mine"
  end

  test "counted as so many single calls", %{place: place} do
    region = mapped(place)
    SharedMemory.write_many!([{region, "1234"}, {region, ["12", "34", "5"]}])
    SharedMemory.read_many!([region, region, region])
    info = SharedMemory.get_region_info!(region)
    assert %{writes: 2, bytes_written: 9, reads: 3, bytes_read: 15} = info

    # What had to be read again on a dirty scheduler counts once.
    large = mapped(place, 262_144)
    SharedMemory.write!(large, :binary.copy("x", 200_000))
    SharedMemory.read_many!([large, large])
    assert %{reads: 2, bytes_read: 400_000} = SharedMemory.get_region_info!(large)
  end

  test "what is no list, no pair, no option", %{place: place} do
    region = mapped(place)

    for bad <- [nil, :all, "id", %{}, [region | region]] do
      assert code(SharedMemory.read_many(bad)) == :invalid_argument
      assert code(SharedMemory.write_many(bad)) == :invalid_argument
    end

    assert code(SharedMemory.write_many([{region, "x"}, region])) == :invalid_argument
    assert code(SharedMemory.read(region)) == :empty

    for {batch, single} <- [
          {SharedMemory.read_many([region], ofset: 1), SharedMemory.read(region, ofset: 1)},
          {SharedMemory.read_many([region], offset: -1), SharedMemory.read(region, offset: -1)},
          {SharedMemory.write_many([{region, "x"}], dtype: 7),
           SharedMemory.write(region, "x", dtype: 7)}
        ] do
      {{:error, batch}, {:error, single}} = {batch, single}

      assert {batch.code, batch.message, batch.remedy} ==
               {single.code, single.message, single.remedy}
    end
  end
end
