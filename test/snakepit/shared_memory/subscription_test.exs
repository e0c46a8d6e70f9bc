defmodule Snakepit.SharedMemory.SubscriptionTest do
  use Snakepit.SharedMemory.Case, async: true

  setup %{place: place} do
    {:ok, id: SharedMemory.allocate_region!(4096, place)}
  end

  # The newest version that a subscription has told of, once it is at least `version`.
  defp await_version(ref, version) do
    receive do
      {:snakepit_shm, ^ref, {:changed, _id, told}} when told >= version -> told
      {:snakepit_shm, ^ref, {:changed, _id, _older}} -> await_version(ref, version)
    after
      10_000 -> flunk("no message about version #{version}")
    end
  end

  test "tells of changes, coalesced, ending with the newest", %{id: id, place: place} do
    ref = SharedMemory.subscribe!(id, place)
    assert is_reference(ref)
    assert SharedMemory.write!(id, "one", place) == 2
    assert_receive {:snakepit_shm, ^ref, {:changed, ^id, 2}}, 10_000

    for n <- 1..1000, do: SharedMemory.write!(id, <<n::32>>, place)
    assert await_version(ref, 2002) == 2002
    {:ok, ^ref} = SharedMemory.unsubscribe(ref)
    refute_received {:snakepit_shm, _, _}
  end

  test "since: what was published before counts, or not", %{id: id, place: place} do
    SharedMemory.write!(id, "one", place)
    old = SharedMemory.subscribe!(id, [since: 0] ++ place)
    assert_receive {:snakepit_shm, ^old, {:changed, ^id, 2}}, 10_000
    new = SharedMemory.subscribe!(id, place)
    exact = SharedMemory.subscribe!(id, [since: 2] ++ place)
    SharedMemory.write!(id, "two", place)
    assert_receive {:snakepit_shm, ^new, {:changed, ^id, 4}}, 10_000
    assert_receive {:snakepit_shm, ^exact, {:changed, ^id, 4}}, 10_000
    refute_received {:snakepit_shm, ^new, {:changed, ^id, 2}}
  end

  test "once: one message, then silence until armed again", %{id: id, place: place} do
    ref = SharedMemory.subscribe!(id, [active: :once] ++ place)
    witness = SharedMemory.subscribe!(id, place)
    SharedMemory.write!(id, "one", place)
    assert_receive {:snakepit_shm, ^ref, {:changed, ^id, 2}}, 10_000

    for _ <- 1..10, do: SharedMemory.write!(id, "more", place)
    await_version(witness, 22)
    refute_received {:snakepit_shm, ^ref, _}

    # All that was missed comes as one.
    {:ok, ^ref} = SharedMemory.set_active(ref, :once)
    assert_receive {:snakepit_shm, ^ref, {:changed, ^id, 22}}, 10_000
    refute_received {:snakepit_shm, ^ref, _}
  end

  test "counted: that many, then a word that it was the last", %{id: id, place: place} do
    ref = SharedMemory.subscribe!(id, [active: 2] ++ place)

    for {value, version} <- [{"one", 2}, {"two", 4}] do
      SharedMemory.write!(id, value, place)
      assert_receive {:snakepit_shm, ^ref, {:changed, ^id, ^version}}, 10_000
    end

    assert_receive {:snakepit_shm, ^ref, :passive}, 10_000
    SharedMemory.write!(id, "three", place)
    {:ok, ^ref} = SharedMemory.set_active(ref, true)
    assert_receive {:snakepit_shm, ^ref, {:changed, ^id, 6}}, 10_000
    refute_received {:snakepit_shm, ^ref, _}
  end

  test "inactive from the start, and made inactive while waiting", %{id: id, place: place} do
    ref = SharedMemory.subscribe!(id, [active: false] ++ place)
    witness = SharedMemory.subscribe!(id, place)
    SharedMemory.write!(id, "one", place)
    await_version(witness, 2)
    refute_received {:snakepit_shm, ^ref, _}
    {:ok, ^ref} = SharedMemory.set_active(ref, true)
    assert_receive {:snakepit_shm, ^ref, {:changed, ^id, 2}}, 10_000

    {:ok, ^ref} = SharedMemory.set_active(ref, false)
    SharedMemory.write!(id, "two", place)
    await_version(witness, 4)
    refute_received {:snakepit_shm, ^ref, _}
    {:ok, ^ref} = SharedMemory.set_active(ref, true)
    assert_receive {:snakepit_shm, ^ref, {:changed, ^id, 4}}, 10_000
  end

  test "no message after unsubscribe has returned; ending twice is fine", %{id: id, place: place} do
    for n <- 1..200 do
      ref = SharedMemory.subscribe!(id, place)
      SharedMemory.write!(id, <<n::32>>, place)
      assert {:ok, ^ref} = SharedMemory.unsubscribe(ref)
      drain(ref)
      SharedMemory.write!(id, <<n::32>>, place)
      refute_received {:snakepit_shm, ^ref, _}
      assert {:ok, ^ref} = SharedMemory.unsubscribe(ref)
    end
  end

  defp drain(ref) do
    receive do
      {:snakepit_shm, ^ref, _} -> drain(ref)
    after
      0 -> :ok
    end
  end

  test "the messages go to the pid given, and end with it", %{id: id, place: place} do
    test = self()
    {:ok, receiver} = in_process(fn -> :ok end)
    forwarder = spawn(fn -> forward(test) end)
    ref = SharedMemory.subscribe!(id, [pid: forwarder] ++ place)
    dying = SharedMemory.subscribe!(id, [pid: receiver] ++ place)
    assert is_reference(dying)
    SharedMemory.write!(id, "one", place)
    assert_receive {:forwarded, {:snakepit_shm, ^ref, {:changed, ^id, 2}}}, 10_000
    kill(receiver)
    kill(forwarder)
    assert {:ok, ^ref} = SharedMemory.unsubscribe(ref)
    assert {:ok, ^dying} = SharedMemory.unsubscribe(dying)
    assert code(SharedMemory.subscribe(id, [pid: :me] ++ place)) == :invalid_option
  end

  defp forward(test) do
    receive do
      message -> send(test, {:forwarded, message})
    end

    forward(test)
  end

  test "a subscription of a dead process ends at once", %{id: id, place: place} do
    {:ok, dead} = in_process(fn -> :ok end)
    kill(dead)
    assert {:ok, ref} = SharedMemory.subscribe(id, [pid: dead] ++ place)
    assert {:ok, ^ref} = SharedMemory.unsubscribe(ref)
  end

  test "closed: when the region is sealed, deallocated, or its owner dies", %{place: place} do
    [sealed, removed] = for _ <- 1..2, do: SharedMemory.allocate_region!(4096, place)
    {orphan, owner} = in_process(fn -> SharedMemory.allocate_region!(4096, place) end)

    refs = for id <- [sealed, removed, orphan], do: {id, SharedMemory.subscribe!(id, place)}
    for id <- [sealed, removed, orphan], do: SharedMemory.write!(id, "last", place)
    for {id, ref} <- refs, do: assert_receive({:snakepit_shm, ^ref, {:changed, ^id, 2}}, 10_000)

    SharedMemory.seal!(sealed, place)
    SharedMemory.deallocate_region!(removed, place)
    kill(owner)

    for {{id, ref}, code} <- Enum.zip(refs, [:sealed, :closed, :closed]) do
      assert_receive {:snakepit_shm, ^ref, {:closed, ^id, ^code}}, 10_000
      assert {:ok, ^ref} = SharedMemory.unsubscribe(ref)
    end
  end

  test "a mapping may be given back while it is subscribed to", %{id: id, place: place} do
    region = SharedMemory.map_region!(id, place)
    ref = SharedMemory.subscribe!(region)
    SharedMemory.unmap_region!(region)
    SharedMemory.write!(id, "one", place)
    assert_receive {:snakepit_shm, ^ref, {:changed, ^id, 2}}, 10_000
  end

  # Threads of this VM whose names begin with one of ours.
  defp waiting_threads do
    Enum.count(Path.wildcard("/proc/self/task/*/comm"), fn path ->
      case File.read(path) do
        {:ok, "shm-subscribe" <> _} -> true
        {:ok, "shm-notifier" <> _} -> true
        _other -> false
      end
    end)
  end

  test "hundreds of subscriptions take no thread each", %{id: id, place: place} do
    refs = for _ <- 1..300, do: SharedMemory.subscribe!(id, place)
    assert SharedMemory.write!(id, "one", place) == 2
    for ref <- refs, do: assert_receive({:snakepit_shm, ^ref, {:changed, ^id, 2}}, 10_000)
    # One that sends, and one that sleeps for up to 127 segments: other tests have some, too.
    assert waiting_threads() < 10
    for ref <- refs, do: {:ok, ^ref} = SharedMemory.unsubscribe(ref)
    SharedMemory.write!(id, "two", place)
    refute_received {:snakepit_shm, _, _}
  end

  test "a region of another OS process, by name", %{place: place} do
    {:ok, writer} = Native.create(native(place, "foreign"))
    ref = SharedMemory.subscribe!("foreign", place)
    {:ok, 2} = Native.write(writer, "theirs", nil)
    assert_receive {:snakepit_shm, ^ref, {:changed, "foreign", 2}}, 10_000
    {:ok, :ok} = Native.discard(writer)
    assert_receive {:snakepit_shm, ^ref, {:closed, "foreign", :closed}}, 10_000
  end

  test "refuses what cannot be subscribed to", %{id: id, place: place} do
    silent = SharedMemory.allocate_region!(4096, [notify: false] ++ place)
    assert code(SharedMemory.subscribe(silent, place)) == :unsupported
    assert code(SharedMemory.subscribe("nobody", place)) == :not_found
    assert code(SharedMemory.subscribe(:x, place)) == :invalid_argument
    handle = SharedMemory.share!("x", place)
    assert code(SharedMemory.subscribe(handle, dir: place[:dir])) == :sealed

    for options <- [
          [active: 0],
          [active: -1],
          [active: :twice],
          [since: -1],
          [since: 1.0],
          [once: true]
        ] do
      assert code(SharedMemory.subscribe(id, options ++ place)) == :invalid_option
    end

    ref = SharedMemory.subscribe!(id, place)

    for active <- [0, -1, :twice, nil, "1"],
        do: assert(code(SharedMemory.set_active(ref, active)) == :invalid_option)

    for thing <- [make_ref(), nil, self(), :x, id] do
      assert code(SharedMemory.set_active(thing, true)) == :invalid_argument
      assert code(SharedMemory.unsubscribe(thing)) == :invalid_argument
    end
  end
end
