defmodule Snakepit.SharedMemory.ExclusiveTest do
  # The right to write, one process at a time.
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.{Target, Writers}

  @patience 30_000

  setup %{place: place} do
    {:ok, id: SharedMemory.allocate_region!(4096, place)}
  end

  defp key(id, place), do: {place[:dir], place[:namespace], id}

  # A process that has the right until it is told to end; `{:end, fun}` is how.
  defp hold(id, place) do
    test = self()

    pid =
      spawn(fn ->
        SharedMemory.with_writer!(id, place, fn region ->
          send(test, {:holds, self(), region})
          receive do: ({:end, fun} -> fun.(region))
        end)
      end)

    assert_receive {:holds, ^pid, region}, @patience
    {pid, region}
  end

  defp let_go(pid), do: send(pid, {:end, fn _region -> :ok end})

  defp waiting(id, place) do
    case :sys.get_state(Writers).queues[key(id, place)] do
      nil -> 0
      queue -> :queue.len(queue)
    end
  end

  defp free?(id, place), do: Writers.holder(key(id, place)) == nil

  test "R6.3 read, change and write by many processes loses no update", %{id: id, place: place} do
    SharedMemory.write!(id, "0", place)

    add = fn region ->
      number = region |> SharedMemory.read!() |> String.to_integer()
      :erlang.yield()
      SharedMemory.write!(region, Integer.to_string(number + 1))
    end

    1..20
    |> Task.async_stream(
      fn _ ->
        for _ <- 1..20, do: SharedMemory.with_writer!(id, [timeout: 60_000] ++ place, add)
      end,
      max_concurrency: 20,
      timeout: 120_000
    )
    |> Stream.run()

    assert SharedMemory.read!(id, place) == "400"
    assert eventually(fn -> free?(id, place) and waiting(id, place) == 0 end)
  end

  test "answers what the function returned", %{id: id, place: place} do
    assert SharedMemory.with_writer(id, place, fn _ -> {:error, :mine} end) ==
             {:ok, {:error, :mine}}

    assert SharedMemory.with_writer!(id, place, fn region -> region.size end) == 4096
    assert_raise Error, fn -> SharedMemory.with_writer!("nobody", place, & &1) end
  end

  test "what the function gets can be read, written, patched and sealed", %{id: id, place: place} do
    assert {:ok, :done} =
             SharedMemory.with_writer(id, place, fn region ->
               assert %Region{id: ^id, access_mode: :read_write} = region
               2 = SharedMemory.write!(region, "hello", dtype: :u8)
               4 = SharedMemory.write!(region, "J", offset: 0)
               6 = SharedMemory.write!(id, "Jelly", place)
               assert SharedMemory.read!(region) == "Jelly"
               assert SharedMemory.get_region_info!(region).bytes == 5
               SharedMemory.seal!(region)
               assert SharedMemory.binary!(region) == "Jelly"
               :done
             end)

    assert {:ok, {:error, %Error{code: :sealed}}} =
             SharedMemory.with_writer(id, place, &SharedMemory.write(&1, "x"))
  end

  test "R6.3 every other process is refused, however it came by the region", %{
    id: id,
    place: place
  } do
    big = SharedMemory.allocate_region!(8 * 1024 * 1024, place)
    mapped = SharedMemory.map_region!(id, place)
    SharedMemory.write!(id, "before", place)

    for {id, data} <- [{id, "x"}, {big, :binary.copy("x", 8 * 1024 * 1024)}] do
      {pid, theirs} = hold(id, place)

      for write <- [
            fn -> SharedMemory.write(id, data, place) end,
            fn -> SharedMemory.write(id, data, [offset: 0] ++ place) end,
            fn -> SharedMemory.write(theirs, data) end,
            fn -> SharedMemory.seal(id, place) end
          ] do
        assert {:error, %Error{code: :segment_busy, region: ^id} = error} = write.()
        assert error.message =~ "has the right to write"
        assert error.remedy =~ "with_writer"
      end

      let_go(pid)
      assert eventually(fn -> free?(id, place) end)
      assert {:ok, _} = SharedMemory.write(id, data, place)
    end

    {pid, _} = hold(id, place)
    assert code(SharedMemory.write(mapped, "x")) == :segment_busy
    assert SharedMemory.read!(mapped) == "x"
    let_go(pid)
    assert eventually(fn -> match?({:ok, _}, SharedMemory.write(mapped, "y")) end)
  end

  test "a write that is under way is waited for, and none comes in between", %{place: place} do
    size = 32 * 1024 * 1024
    id = SharedMemory.allocate_region!(size, place)
    data = :binary.copy("d", size)

    for _ <- 1..5 do
      writer = Task.async(fn -> code(SharedMemory.write(id, data, place)) end)
      :erlang.yield()

      {:ok, {before, later}} =
        SharedMemory.with_writer(id, [timeout: @patience] ++ place, fn region ->
          before = SharedMemory.get_region_info!(region).version
          refused = Task.async(fn -> code(SharedMemory.write(id, data, place)) end)
          assert Task.await(refused, @patience) == :segment_busy
          # It was through before us, or comes too late.
          assert Task.await(writer, @patience) in [{:ok, before}, :segment_busy]
          {before, SharedMemory.get_region_info!(region).version}
        end)

      assert before == later
    end
  end

  test "who asks first is served first", %{id: id, place: place} do
    {pid, _} = hold(id, place)
    test = self()

    waiters =
      for n <- 1..5 do
        waiter =
          Task.async(fn ->
            SharedMemory.with_writer!(id, place, fn _ -> send(test, {:turn, n}) end)
          end)

        assert eventually(fn -> waiting(id, place) == n end)
        waiter
      end

    let_go(pid)
    Task.await_many(waiters, @patience)
    assert for(_ <- 1..5, do: receive(do: ({:turn, n} -> n))) == [1, 2, 3, 4, 5]
  end

  test "the death of the holder frees it", %{id: id, place: place} do
    {pid, _} = hold(id, place)

    next =
      Task.async(fn ->
        SharedMemory.with_writer(
          id,
          [timeout: @patience] ++ place,
          &SharedMemory.write!(&1, "next")
        )
      end)

    assert eventually(fn -> waiting(id, place) == 1 end)
    kill(pid)
    assert {:ok, 2} = Task.await(next, @patience)
    assert {:ok, 4} = SharedMemory.write(id, "anybody", place)
  end

  test "the death of one that waits leaves the others their turn", %{id: id, place: place} do
    {pid, _} = hold(id, place)
    dying = spawn(fn -> SharedMemory.with_writer(id, place, fn _ -> :ok end) end)
    assert eventually(fn -> waiting(id, place) == 1 end)
    next = Task.async(fn -> SharedMemory.with_writer(id, place, fn _ -> :mine end) end)
    assert eventually(fn -> waiting(id, place) == 2 end)
    kill(dying)
    assert eventually(fn -> waiting(id, place) == 1 end)
    let_go(pid)
    assert Task.await(next, @patience) == {:ok, :mine}
  end

  test "an exception, a throw and an exit go on to the caller, and free it", %{
    id: id,
    place: place
  } do
    enter = fn fun -> SharedMemory.with_writer(id, place, fn _region -> fun.() end) end
    assert_raise RuntimeError, "no", fn -> enter.(fn -> raise "no" end) end
    assert catch_throw(enter.(fn -> throw(:ball) end)) == :ball
    assert catch_exit(enter.(fn -> exit(:done) end)) == :done
    assert free?(id, place)
    assert {:ok, _} = Task.await(Task.async(fn -> SharedMemory.write(id, "x", place) end))
  end

  test "the same process may enter again; the right ends with the outermost", %{
    id: id,
    place: place
  } do
    mapped = SharedMemory.map_region!(id, place)
    other = fn -> Task.await(Task.async(fn -> code(SharedMemory.write(id, "x", place)) end)) end

    assert {:ok, {:ok, {:ok, :deep}}} =
             SharedMemory.with_writer(id, place, fn _region ->
               inner =
                 SharedMemory.with_writer(mapped, fn region ->
                   SharedMemory.with_writer(region, fn region ->
                     SharedMemory.write!(region, "deep")
                     :deep
                   end)
                 end)

               assert other.() == :segment_busy
               inner
             end)

    assert {:ok, _} = other.()
  end

  test "R6.4 two regions taken in opposite orders: it ends by the deadline", %{
    id: one,
    place: place
  } do
    two = SharedMemory.allocate_region!(4096, place)
    test = self()

    both = fn first, second ->
      Task.async(fn ->
        SharedMemory.with_writer(first, place, fn _ ->
          send(test, {:has, first})
          receive do: (:go -> :ok)
          SharedMemory.with_writer(second, [timeout: 200] ++ place, fn _ -> :both end)
        end)
      end)
    end

    tasks = [both.(one, two), both.(two, one)]
    assert_receive {:has, ^one}, @patience
    assert_receive {:has, ^two}, @patience
    for task <- tasks, do: send(task.pid, :go)
    answers = for {:ok, answer} <- Task.await_many(tasks, @patience), do: code(answer)
    # When one has given up and let go, the other may get both.
    assert :timeout in answers
    assert Enum.all?(answers, &(&1 in [:timeout, {:ok, :both}]))
    assert free?(one, place) and free?(two, place)
  end

  test "R6.4 the timeout is an error that names the holder, and leaves nothing", %{
    id: id,
    place: place
  } do
    {pid, _} = hold(id, place)

    for timeout <- [0, 20] do
      assert {:error, error} = SharedMemory.with_writer(id, [timeout: timeout] ++ place, & &1)
      assert %Error{code: :timeout, region: ^id, operation: :with_writer} = error
      assert error.message =~ inspect(pid)
      assert error.remedy =~ "one order"
    end

    assert waiting(id, place) == 0
    let_go(pid)
    assert eventually(fn -> free?(id, place) end)
    assert {:messages, []} = Process.info(self(), :messages)
    assert SharedMemory.with_writer(id, place, fn _ -> :mine end) == {:ok, :mine}
  end

  test "the region is removed meanwhile", %{id: id, place: place} do
    {pid, theirs} = hold(id, place)
    next = Task.async(fn -> SharedMemory.with_writer(id, place, fn _ -> :mine end) end)
    assert eventually(fn -> waiting(id, place) == 1 end)
    SharedMemory.deallocate_region!(id, place)
    assert code(SharedMemory.write(theirs, "x")) == :closed
    let_go(pid)
    assert code(Task.await(next, @patience)) == :not_found
  end

  test "what is no region to write, and no function", %{id: id, place: place} do
    fun = fn _ -> :ok end
    read_only = SharedMemory.map_region!(id, [access_mode: :read_only] ++ place)
    assert code(SharedMemory.with_writer(read_only, fun)) == :permission_denied
    handle = SharedMemory.share!("x", place)
    assert code(SharedMemory.with_writer(handle, [dir: place[:dir]], fun)) == :sealed
    assert code(SharedMemory.with_writer("nobody", place, fun)) == :not_found
    assert code(SharedMemory.with_writer("a/b", place, fun)) == :invalid_name
    gone = SharedMemory.map_region!(id, place)
    SharedMemory.unmap_region!(gone)
    assert {:ok, _} = SharedMemory.with_writer(gone, fun)

    for region <- [nil, 1, %{}, self(), [id]] do
      assert code(SharedMemory.with_writer(region, place, fun)) == :invalid_argument
    end

    for fun <- [nil, :f, fn -> :ok end, fn _, _ -> :ok end, {IO, :puts, []}] do
      assert {:error, error} = SharedMemory.with_writer(id, place, fun)
      assert error.code == :invalid_argument
      assert error.message =~ "not a function of one argument"
    end

    for timeout <- [-1, :infinity, nil, 1.5] do
      options = [timeout: timeout] ++ place
      assert code(SharedMemory.with_writer(id, options, fun)) == :invalid_option
    end

    assert {:error, error} = SharedMemory.with_writer(id, [timeuot: 1] ++ place, fun)
    assert error.message =~ "did you mean :timeout?"
  end

  describe "a region of another OS process" do
    # Created beside the registry, it is looked at as another process's region is.
    setup %{place: place} do
      {:ok, writer} = Native.create(native(place, "foreign"))
      {:ok, 2} = Native.write(writer, "theirs", nil)

      on_exit(fn ->
        place |> native("foreign") |> Native.remove()
      end)

      {:ok, writer: writer}
    end

    test "with a living writer: busy by the deadline", %{place: place, writer: writer} do
      for timeout <- [0, 500] do
        assert {:error, error} =
                 SharedMemory.with_writer("foreign", [timeout: timeout] ++ place, & &1)

        assert %Error{code: code, region: "foreign", operation: :with_writer} = error
        assert code == :segment_busy or (timeout == 0 and code == :timeout)
      end

      assert {:ok, 4} = Native.write(writer, "still theirs", nil)
      assert {:messages, []} = Process.info(self(), :messages)
    end

    test "R6.5 given up: it is taken over, and given up again", %{place: place, writer: writer} do
      waiting =
        Task.async(fn ->
          SharedMemory.with_writer("foreign", [timeout: @patience] ++ place, fn region ->
            before = SharedMemory.read!(region)
            {before, SharedMemory.write!(region, "ours"), region}
          end)
        end)

      asking? = fn -> match?({_, _, _, _, :asking}, Writers.holder(key("foreign", place))) end
      assert eventually(asking?)
      {:ok, :ok} = Native.release(writer)
      assert {:ok, {"theirs", 4, region}} = Task.await(waiting, @patience)
      assert code(SharedMemory.write(region, "late")) == :closed
      assert code(SharedMemory.read(region)) == :closed

      {:ok, again} = Native.attach_writer(native(place, "foreign"))
      assert {:ok, 6} = Native.write(again, "theirs again", nil)
    end

    test "a holder that is killed gives it up as well", %{place: place, writer: writer} do
      {:ok, :ok} = Native.release(writer)
      {pid, region} = hold("foreign", place)
      assert code(SharedMemory.write(region, "x")) == :segment_busy
      kill(pid)

      assert eventually(fn ->
               match?({:ok, _}, Native.attach_writer(native(place, "foreign")))
             end)

      assert eventually(fn -> free?("foreign", place) end)
    end

    test "one that waits and is killed asks no longer", %{place: place, writer: writer} do
      pid =
        spawn(fn -> SharedMemory.with_writer("foreign", [timeout: 3_600_000] ++ place, & &1) end)

      assert eventually(fn ->
               match?({_, ^pid, _, _, :asking}, Writers.holder(key("foreign", place)))
             end)

      {_, _, _, job, :asking} = Writers.holder(key("foreign", place))
      monitor = Process.monitor(job)
      kill(pid)
      assert_receive {:DOWN, ^monitor, :process, ^job, _}, @patience
      assert eventually(fn -> free?("foreign", place) end)
      assert {:ok, 4} = Native.write(writer, "still theirs", nil)
    end

    test "sealed: nobody can write it", %{place: place, writer: writer} do
      {:ok, 2} = Native.seal(writer)
      {:ok, :ok} = Native.release(writer)
      assert code(SharedMemory.with_writer("foreign", place, & &1)) == :sealed
    end

    test "mapped for writing: its mapping is what is held", %{place: place, writer: writer} do
      {:ok, :ok} = Native.release(writer)
      mapped = SharedMemory.map_region!("foreign", [access_mode: :read_write] ++ place)

      assert {:ok, :segment_busy} =
               SharedMemory.with_writer(mapped, fn ^mapped ->
                 SharedMemory.write!(mapped, "mine")
                 Task.await(Task.async(fn -> code(SharedMemory.write(mapped, "x")) end))
               end)

      assert {:ok, _} = SharedMemory.write(mapped, "mine still")
      SharedMemory.unmap_region!(mapped)
    end
  end

  test "the name of a configured region, where the id is the key" do
    id = SharedMemory.allocate_region!(4096)
    assert %Target{key: ^id} = Target.new(id, %{}, config())
    assert {:ok, 2} = SharedMemory.with_writer(id, &SharedMemory.write!(&1, "x"))
    SharedMemory.deallocate_region!(id)
  end

  defp config do
    {:ok, config} = Snakepit.SharedMemory.Config.fetch(:test)
    config
  end
end
