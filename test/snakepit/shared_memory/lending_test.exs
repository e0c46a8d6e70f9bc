defmodule Snakepit.SharedMemory.LendingTest do
  # Regions whose writer's place another OS process takes. Here it is taken by bare calls of the native
  # library, which the rest of this VM knows nothing of; workers in Python are in `test/interop`.
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.Table

  defp allocate!(place, options \\ []) do
    SharedMemory.allocate_region!(4096, [slots: 1] ++ options ++ place)
  end

  defp lend(id, place, options \\ []), do: SharedMemory.lend_region(id, options ++ place)

  # What a borrower does: answers its writer.
  defp borrow!(id, place) do
    {:ok, writer} = Native.attach_writer(native(place, id))
    writer
  end

  defp fill!(writer, data) do
    {:ok, 2} = Native.write(writer, data, nil)
    {:ok, 2} = Native.seal(writer)
    {:ok, :ok} = Native.release(writer)
  end

  test "a loan survives JSON and says what is to be filled", %{place: place} do
    id = allocate!(place, name: "lent")
    {:ok, loan} = lend(id, place)
    assert %{"__snakepit_shm_loan__" => 1, "name" => "lent", "size" => 4096} = loan
    assert loan["namespace"] == place[:namespace]
    assert loan["token"] =~ ~r/^[0-9a-f]{32}$/
    refute Map.has_key?(loan, "dtype")

    # Lent again, as nobody has taken it.
    {:ok, again} = lend(id, place, dtype: :f32, shape: [2, 3])
    assert Map.drop(again, ["dtype", "shape"]) == loan
    assert {again["dtype"], again["shape"]} == {"<f4", [2, 3]}
    {:ok, whole} = lend(id, place, dtype: {:u, 16})
    assert whole["shape"] == [2048]
  end

  test "what does not fit or is half said is refused, and the region stays ours", context do
    %{place: place} = context
    id = allocate!(place)

    for {options, expected} <- [
          {[shape: [4]], :invalid_option},
          {[dtype: :f33], :invalid_option},
          {[dtype: "float"], :invalid_option},
          {[dtype: :u8, shape: [4097]], :out_of_bounds},
          {[dtype: :u8, shape: [0]], :out_of_bounds},
          {[dtype: :f64, shape: [0xFFFF_FFFF, 0xFFFF_FFFF]], :out_of_bounds},
          {[dtyp: :u8], :invalid_option}
        ] do
      assert {options, code(lend(id, place, options))} == {options, expected}
    end

    {:error, error} = lend(id, place, dtyp: :u8)
    assert error.message =~ "did you mean :dtype?"
    assert SharedMemory.write!(id, "ours", place) == 2
    assert code(lend("nobody", place)) == :not_found
    assert code(SharedMemory.take_back_region("nobody", place)) == :not_found
  end

  test "while it is lent it cannot be written here, and is there all the same", %{place: place} do
    id = allocate!(place)
    {:ok, _loan} = lend(id, place)

    for refused <- [
          SharedMemory.write(id, "x", place),
          SharedMemory.write(id, "x", [offset: 1] ++ place),
          SharedMemory.write(id, String.duplicate("x", 4096), place),
          SharedMemory.seal(id, place)
        ] do
      assert {:error, %Error{code: :segment_busy} = error} = refused
      assert error.remedy =~ "take_back_region"
    end

    assert code(SharedMemory.read(id, place)) == :empty
    assert %{size: 4096, owner_pid: owner} = SharedMemory.get_region_info!(id, place)
    assert owner == self()
    assert %{removed: []} = SharedMemory.cleanup_regions!([grace: 0] ++ place)
    assert SharedMemory.list_regions!([orphaned: true] ++ place) == []
    assert {:error, {:segment_busy, _, _, _}} = Native.adopt(native(place, id, %{slots: 1}))

    assert SharedMemory.take_back_region!(id, place) == id
    assert SharedMemory.take_back_region!(id, place) == id
    assert SharedMemory.write!(id, "x", place) == 2
  end

  test "while another process has the place it is not to be had", %{place: place} do
    id = allocate!(place)
    {:ok, _loan} = lend(id, place)
    writer = borrow!(id, place)
    assert code(SharedMemory.take_back_region(id, place)) == :segment_busy
    assert code(lend(id, place)) == :segment_busy
    {:ok, 2} = Native.write(writer, "theirs", nil)
    # Values that are published can be read meanwhile.
    assert SharedMemory.read!(id, place) == "theirs"
    {:ok, :ok} = Native.release(writer)
    assert SharedMemory.take_back_region!(id, place) == id
    assert SharedMemory.read!(id, place) == "theirs"
    assert SharedMemory.seal!(id, place) == 2
    assert SharedMemory.binary!(id, place) == "theirs"
  end

  test "sealed by the other one it is a value like any, taken back or not", %{place: place} do
    id = allocate!(place)
    {:ok, loan} = lend(id, place)
    fill!(borrow!(id, place), "result")
    handle = SharedMemory.handle!(id, place)
    assert handle["token"] == loan["token"]
    assert SharedMemory.binary!(id, place) == "result"
    assert SharedMemory.fetch!(handle, dir: place[:dir]) == "result"
    assert code(lend(id, place)) == :sealed
    assert SharedMemory.take_back_region!(id, place) == id
    assert SharedMemory.fetch!(handle, dir: place[:dir]) == "result"
    assert code(lend(handle, dir: place[:dir])) == :sealed
    assert SharedMemory.deallocate_region!(handle, dir: place[:dir]) == id
  end

  for state <- [:lent, :borrowed, :sealed] do
    @state state
    test "#{state}, it goes with its owner and when it is deallocated", context do
      %{place: place, dir: dir} = context

      for ending <- [:owner, :deallocate] do
        {id, owner} =
          in_process(fn ->
            id = allocate!(place)
            {:ok, _loan} = lend(id, place)
            id
          end)

        writer = if @state != :lent, do: borrow!(id, place)
        if @state == :sealed, do: fill!(writer, "x")

        if ending == :owner do
          kill(owner)
        else
          SharedMemory.deallocate_region!(id, place)
          kill(owner)
        end

        assert eventually(fn -> TestDir.leftovers(dir) == [] end)
        # The other one is told.
        if @state == :borrowed,
          do: assert({:error, {:closed, _, _, _}} = Native.write(writer, "x", nil))
      end
    end
  end

  test "a handle of an earlier region of its name takes nothing back", %{place: place} do
    id = allocate!(place, name: "again")
    {:ok, _loan} = lend(id, place)
    id |> borrow!(place) |> fill!("first")
    handle = SharedMemory.handle!(id, place)
    assert SharedMemory.take_back_region(handle, place) == {:ok, id}
    SharedMemory.deallocate_region!(id, place)

    ^id = allocate!(place, name: "again")
    {:ok, _loan} = lend(id, place)
    assert code(SharedMemory.take_back_region(handle, place)) == :invalid_handle
    # Still lent.
    assert code(SharedMemory.write(id, "x", place)) == :segment_busy
    SharedMemory.take_back_region!(id, place)
    assert code(SharedMemory.take_back_region(handle, place)) == :invalid_handle
  end

  test "who has the exclusive right to write lends, and nobody else", %{place: place} do
    id = allocate!(place)

    {:ok, {mine, theirs}} =
      SharedMemory.with_writer(id, place, fn _ ->
        {theirs, other} = in_process(fn -> lend(id, place) end)
        kill(other)
        {lend(id, place), theirs}
      end)

    assert {:ok, %{"name" => ^id}} = mine
    assert code(theirs) == :segment_busy
  end

  test "lending is a use: a region is not idle when a worker is about to come", %{place: place} do
    id = allocate!(place, timeout: 3_600_000)
    key = {place[:dir], place[:namespace], id}
    assert Table.uses(key) == 0
    {:ok, _loan} = lend(id, place)
    assert Table.uses(key) == 1
  end

  test "lending and taking back are in the history", %{place: place} do
    id = allocate!(place)
    {:ok, _loan} = lend(id, place)
    SharedMemory.take_back_region!(id, place)
    operations = for change <- SharedMemory.history!(id, place), do: change.operation
    assert Enum.sort(operations) == [:allocate, :lend, :take_back]
  end
end
