defmodule Snakepit.SharedMemory.ExpiryTest do
  # Changes the default timeout for the whole application, and kills what watches it.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Expiry, Foreign, Listener, ReferenceCounter, Registry}

  defp ids(place), do: Enum.map(SharedMemory.list_regions!(place), & &1.id)

  test "R2.2 the configured default timeout is for regions that say nothing else", %{place: place} do
    Listener.attach(self())

    with_config([default_timeout: 20], fn ->
      SharedMemory.allocate_region!(4096, [name: "stays", timeout: nil] ++ place)
      SharedMemory.allocate_region!(4096, [name: "longer", timeout: 3_600_000] ++ place)
      SharedMemory.allocate_region!(4096, [name: "goes", slots: 2] ++ place)
      SharedMemory.share!("goes too", [name: "shared"] ++ place)

      expired = [:snakepit, :shared_memory, :cleanup, :expired]

      for {id, bytes} <- [{"goes", 8192}, {"shared", 4096}] do
        assert_receive {:event, ^expired, %{bytes: ^bytes}, %{region: ^id, reason: :idle}}, 10_000
      end

      assert eventually(fn -> ids(place) == ["longer", "stays"] end)
      for id <- ids(place), do: SharedMemory.deallocate_region!(id, place)
    end)
  end

  test "killed, it goes on where it was; what is in use stays", %{place: place} do
    used = SharedMemory.allocate_region!(4096, [name: "used", timeout: 50] ++ place)
    region = SharedMemory.map_region!(used, place)

    for n <- 1..5 do
      SharedMemory.allocate_region!(4096, [name: "idle#{n}", timeout: 50] ++ place)
      old = Process.whereis(Expiry)
      kill(old)
      assert eventually(fn -> Process.whereis(Expiry) not in [nil, old] end)
    end

    assert eventually(fn -> ids(place) == ["used"] end)
    SharedMemory.unmap_region!(region)
    assert eventually(fn -> ids(place) == [] end)
    assert eventually(fn -> :sys.get_state(Expiry).seen == %{} end)
  end

  test "R3.4 a region that another OS process reads is not idle", %{place: place} do
    peer = Foreign.start([cleanup_interval: 3_600_000] ++ place)
    SharedMemory.allocate_region!(4096, [name: "read", timeout: 100] ++ place)

    assert {:ok, %{id: "read"}} = Foreign.run(peer, ~s|Snakepit.SharedMemory.map_region("read")|)

    SharedMemory.allocate_region!(4096, [name: "idle", timeout: 200] ++ place)
    assert eventually(fn -> ids(place) == ["read"] end)
    Foreign.kill(peer)
    assert eventually(fn -> ids(place) == [] end)
  end

  test "what was seen does not hold any more: the registry keeps the region", %{place: place} do
    id = SharedMemory.allocate_region!(4096, [name: "kept"] ++ place)
    key = {place[:dir], place[:namespace], id}
    {:ok, %{token: token}} = Snakepit.SharedMemory.Table.record(key)
    assert Registry.expire(key, {:idle, make_ref(), 0}) == :kept
    assert Registry.expire(key, {:idle, token, 1}) == :kept
    assert Registry.expire(key, {:mark, 0}) == :kept
    assert Registry.expire({place[:dir], place[:namespace], "nobody"}, {:mark, 0}) == :kept
    region = SharedMemory.map_region!(id, place)
    assert Registry.expire(key, {:idle, token, 0}) == :kept
    SharedMemory.unmap_region!(region)
    SharedMemory.read(id, place)
    # The reader for reads by id is one that came after the look.
    assert Registry.expire(key, {:idle, token, 0}) == :kept
    assert Registry.drop_reader(key)
    assert Registry.expire(key, {:idle, token, 0}) == :removed
    assert eventually(fn -> ids(place) == [] end)
  end

  defp key(id, place), do: {place[:dir], place[:namespace], id}
  defp grace(id, place), do: :sys.get_state(Expiry).graces[key(id, place)]

  defp marked(place, name) do
    options = [name: name, cleanup_policy: :reference_counted] ++ place
    SharedMemory.allocate_region!(4096, options)
    {:ok, 0} = ReferenceCounter.decrement(name, self(), place)
    assert eventually(fn -> grace(name, place) != nil end)
    name
  end

  test "R3.4 what is read by its handle is used, and what somebody has the right to write",
       context do
    %{place: place} = context
    handle = SharedMemory.share!("value", [name: "read", timeout: 100] ++ place)
    SharedMemory.allocate_region!(4096, [name: "held", timeout: 100] ++ place)
    SharedMemory.allocate_region!(4096, [name: "idle", timeout: 400] ++ place)

    SharedMemory.with_writer!("held", place, fn region ->
      # Four times as long as these two may be idle.
      assert eventually(fn ->
               assert {:ok, "value"} = SharedMemory.read(handle, dir: place[:dir])
               ids(place) == ["held", "read"]
             end)

      assert {:ok, 2} = SharedMemory.write(region, "here")
      assert %{views: views, access_count: count} = SharedMemory.get_region_info!("read", place)
      assert views > 1 and count > views
    end)

    assert eventually(fn -> ids(place) == [] end)
  end

  test "R3.3 a mark is not forgotten because the registry was slow", %{place: place} do
    with_config([reference_grace: 50, call_timeout: 50], fn ->
      id = marked(place, "slow")
      first = grace(id, place)
      :sys.suspend(Registry)

      try do
        # Until the registry has been asked in vain, twice.
        for _ <- 1..2, reduce: first do
          %{timer: before} ->
            assert eventually(fn -> grace(id, place).timer != before end)
            grace(id, place)
        end
      after
        :sys.resume(Registry)
      end

      assert eventually(fn -> ids(place) == [] end)
      assert eventually(fn -> grace(id, place) == nil end)
    end)
  end

  test "R14.5 the grace that runs is the one of now", %{place: place} do
    with_config([reference_grace: 3_600_000], fn ->
      marked(place, "goes")
      SharedMemory.reconfigure!(reference_grace: 10)
      assert eventually(fn -> ids(place) == [] end)

      SharedMemory.reconfigure!(reference_grace: 300)
      marked(place, "stays")
      SharedMemory.reconfigure!(reference_grace: 3_600_000)
      assert :erlang.read_timer(grace("stays", place).timer) > 3_000_000
      SharedMemory.reconfigure!(reference_grace: 10)
      assert eventually(fn -> ids(place) == [] end)
    end)
  end

  test "R14.5 the default timeout of now is that of regions that name none", %{place: place} do
    with_config([default_timeout: 3_600_000], fn ->
      SharedMemory.allocate_region!(4096, [name: "own", timeout: 7_200_000] ++ place)
      SharedMemory.allocate_region!(4096, [name: "default"] ++ place)
      timeout = fn id -> SharedMemory.get_region_info!(id, place).timeout end
      seen? = fn id -> Map.has_key?(:sys.get_state(Expiry).seen, key(id, place)) end
      assert eventually(fn -> seen?.("default") end)

      SharedMemory.reconfigure!(default_timeout: nil)
      assert {timeout.("own"), timeout.("default")} == {7_200_000, nil}
      SharedMemory.reconfigure!(default_timeout: 7_200_000)
      assert timeout.("default") == 7_200_000
      assert seen?.("default")

      kill(Process.whereis(Registry))
      SharedMemory.reconfigure!(default_timeout: 30)
      assert eventually(fn -> ids(place) == ["own"] end)
      SharedMemory.deallocate_region!("own", place)
    end)
  end

  test "R14.5 the sessions are looked at by the interval of now" do
    with_config([cleanup_interval: 3_600_000], fn ->
      left = fn -> :erlang.read_timer(:sys.get_state(Expiry).timer) end
      assert left.() > 3_000_000
      SharedMemory.reconfigure!(cleanup_interval: 60_000)
      assert left.() <= 60_000
    end)
  end

  test "a region is not idle for as long as an earlier one of its name was", %{place: place} do
    options = [name: "again", timeout: 3_600_000] ++ place
    SharedMemory.allocate_region!(4096, options)
    key = key("again", place)
    assert eventually(fn -> Map.has_key?(:sys.get_state(Expiry).seen, key) end)
    :sys.replace_state(Expiry, &update_in(&1.seen[key].since, fn since -> since - 7_200_000 end))
    SharedMemory.deallocate_region!("again", place)
    SharedMemory.allocate_region!(4096, options)
    now = System.monotonic_time(:millisecond)
    assert eventually(fn -> :sys.get_state(Expiry).seen[key].since > now - 60_000 end)
    assert ids(place) == ["again"]
    SharedMemory.deallocate_region!("again", place)
  end

  test "a stream may take longer than the time to live of what it is shared in", %{place: place} do
    key = key("slow", place)
    timer = fn -> get_in(:sys.get_state(Expiry).seen, [key, :timer]) end

    # Each piece comes when the region has been looked at three times more, or has gone.
    piece = fn n ->
      Enum.each(1..3, fn _ ->
        before = timer.()
        assert eventually(fn -> timer.() != before end)
      end)

      "piece #{n};"
    end

    options = [name: "slow", size: 100, ttl: 20] ++ place
    assert eventually(fn -> :sys.get_state(Expiry).seen == %{} end)
    assert {:ok, handle} = SharedMemory.share({:stream, Stream.map(1..3, piece)}, options)
    assert handle["bytes"] == 24
    # From now on its time counts.
    assert eventually(fn -> ids(place) == [] end)
  end

  test "a region without a value is in use only while whoever fills it lives", %{place: place} do
    test = self()
    owner = spawn(fn -> receive do: (:stop -> :ok) end)

    {filler, monitor} =
      spawn_monitor(fn ->
        stream = Stream.map([1], fn _ -> send(test, :filling) && receive(do: (:never -> "")) end)

        SharedMemory.share(
          {:stream, stream},
          [name: "half", size: 9, ttl: 20, owner: owner] ++ place
        )
      end)

    assert_receive :filling, 30_000
    Process.exit(filler, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^filler, :killed}, 30_000
    assert eventually(fn -> ids(place) == [] end)
    send(owner, :stop)
  end

  test "regions that have gone are forgotten, however far away their end was", %{place: place} do
    day = 24 * 60 * 60 * 1000

    for n <- 1..50 do
      handle = SharedMemory.share!("x", [ttl: day] ++ place)
      SharedMemory.deallocate_region!(handle, dir: place[:dir])
      name = "counted-#{n}"
      counted = [name: name, cleanup_policy: :reference_counted, timeout: day] ++ place
      id = SharedMemory.allocate_region!(4096, counted)
      {:ok, 0} = ReferenceCounter.decrement(id, self(), place)
      assert %{marked: true} = SharedMemory.get_region_info!(id, place)
      SharedMemory.deallocate_region!(id, place)
    end

    ours = fn ->
      for {{dir, _, _}, _} <- :sys.get_state(Expiry).seen, dir == place[:dir], do: dir
    end

    assert eventually(fn -> ours.() == [] end)

    waiting = fn ->
      for {{dir, _, _}, _} <- :sys.get_state(Expiry).graces, dir == place[:dir], do: dir
    end

    assert eventually(fn -> waiting.() == [] end)
  end

  test "messages that only look like its timers remove nothing", %{place: place} do
    id = SharedMemory.allocate_region!(4096, [name: "live", timeout: 3_600_000] ++ place)
    key = key(id, place)
    assert eventually(fn -> Map.has_key?(:sys.get_state(Expiry).seen, key) end)

    for message <- [
          {:grace, key, nil, false},
          {:idle, key, make_ref()},
          :sessions,
          {:timeout, make_ref(), {:grace, key}},
          {:timeout, nil, {:grace, key}},
          {:timeout, nil, {:idle, key}},
          {:timeout, nil, :sessions}
        ] do
      send(Expiry, message)
    end

    before = :sys.get_state(Expiry)
    assert before.sweep == nil
    assert ids(place) == [id]
    SharedMemory.deallocate_region!(id, place)
  end
end
