defmodule Snakepit.SharedMemory.ReferenceCounterTest do
  # Changes the grace for the whole application.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Expiry, Foreign, Listener, ReferenceCounter, Registry, Table}

  doctest ReferenceCounter

  @rc [cleanup_policy: :reference_counted]
  @never 3_600_000

  defp count(id, place), do: ReferenceCounter.get_count(id, place)
  defp key(id, place), do: {place[:dir], place[:namespace], id}
  defp gone?(id, place), do: code(SharedMemory.get_region_info(id, place)) == :not_found

  test "R3.1 R3.2 increments and decrements are counted, by whomever they are done", %{
    place: place
  } do
    id = SharedMemory.allocate_region!(4096, place)
    assert count(id, place) == {:ok, 1}
    ref = make_ref()
    assert ReferenceCounter.increment(id, ref, place) == {:ok, 2}
    assert ReferenceCounter.increment(id, ref, place) == {:ok, 3}
    assert ReferenceCounter.increment(id, self(), place) == {:ok, 4}
    SharedMemory.map_region!(id, place)
    assert count(id, place) == {:ok, 5}
    assert SharedMemory.get_region_info!(id, place).reference_count == 5

    me = self()

    assert {:ok,
            [
              %{kind: :owner, pid: ^me, holder: nil, count: 1},
              %{kind: :mapping, pid: ^me, holder: nil, count: 1}
              | references
            ]} = ReferenceCounter.get_references(id, place)

    assert Enum.sort(references) ==
             Enum.sort([
               %{kind: :reference, pid: me, holder: ref, count: 2},
               %{kind: :reference, pid: me, holder: me, count: 1}
             ])

    assert ReferenceCounter.decrement(id, ref, place) == {:ok, 4}
    assert ReferenceCounter.decrement(id, ref, place) == {:ok, 3}
    assert ReferenceCounter.decrement(id, self(), place) == {:ok, 2}
  end

  test "R3.5 a decrement without a reference, by a stranger or twice: a named error, no change",
       %{
         place: place
       } do
    id = SharedMemory.allocate_region!(4096, place)
    ref = make_ref()
    {:ok, 2} = ReferenceCounter.increment(id, ref, place)
    {stranger, pid} = in_process(fn -> ReferenceCounter.decrement(id, self(), place) end)
    assert {:error, %Error{code: :not_referenced, remedy: remedy}} = stranger
    assert remedy =~ "once for each increment"

    # The reference of another process is not for taking.
    {another, other} = in_process(fn -> ReferenceCounter.increment(id, ref, place) end)
    assert code(another) == :invalid_argument
    assert count(id, place) == {:ok, 2}

    assert {:ok, 1} = ReferenceCounter.decrement(id, ref, place)
    assert code(ReferenceCounter.decrement(id, ref, place)) == :not_referenced
    # An owner keeps what goes with it.
    assert code(ReferenceCounter.decrement(id, self(), place)) == :invalid_argument
    assert count(id, place) == {:ok, 1}

    for holder <- [nil, :me, "ref", 1, {self()}] do
      assert code(ReferenceCounter.increment(id, holder, place)) == :invalid_argument
      assert code(ReferenceCounter.decrement(id, holder, place)) == :invalid_argument
    end

    for call <- [
          &ReferenceCounter.increment(&1, self(), place),
          &ReferenceCounter.decrement(&1, self(), place),
          &ReferenceCounter.get_count(&1, place),
          &ReferenceCounter.get_references(&1, place)
        ] do
      assert code(call.("nobody")) == :not_found
      assert code(call.(nil)) == :invalid_argument
    end

    assert code(ReferenceCounter.get_count(id, [what: 1] ++ place)) == :invalid_option
    Enum.each([pid, other], &kill/1)
  end

  test "R3.1 references end with their process, and with the caller of a reference", %{
    place: place
  } do
    id = SharedMemory.allocate_region!(4096, place)
    {:ok, holder} = in_process(fn -> :ok end)
    for _ <- 1..3, do: ReferenceCounter.increment(id, holder, place)
    {_, caller} = in_process(fn -> ReferenceCounter.increment(id, make_ref(), place) end)
    assert count(id, place) == {:ok, 5}
    kill(holder)
    assert eventually(fn -> count(id, place) == {:ok, 2} end)
    kill(caller)
    assert eventually(fn -> count(id, place) == {:ok, 1} end)
    # Of one that is dead already nothing stays.
    ReferenceCounter.increment(id, holder, place)
    assert eventually(fn -> count(id, place) == {:ok, 1} end)
    assert Table.references(key(id, place)) == []
  end

  test "R3.3 count at zero marks for cleanup after grace", %{place: place, dir: dir} do
    Listener.attach(self())

    with_config([reference_grace: 100], fn ->
      {id, owner} = in_process(fn -> SharedMemory.allocate_region!(4096, @rc ++ place) end)
      region = SharedMemory.map_region!(id, place)
      kill(owner)
      assert eventually(fn -> SharedMemory.get_region_info!(id, place).reference_count == 1 end)
      refute SharedMemory.get_region_info!(id, place).marked
      SharedMemory.unmap_region!(region)

      marked = [:snakepit, :shared_memory, :cleanup, :marked]
      expired = [:snakepit, :shared_memory, :cleanup, :expired]
      assert_receive {:event, ^marked, %{count: 1}, %{region: ^id}}, 10_000
      before = System.monotonic_time(:millisecond)
      assert_receive {:event, ^expired, %{count: 1, bytes: 16_384}, metadata}, 10_000
      assert metadata == %{region: id, reason: :unreferenced}
      # Never before its time, counted from when the event was sent.
      assert System.monotonic_time(:millisecond) - before >= 50
      # The event tells that it is out of the registry; its files go at once after it.
      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end)
  end

  test "R3.3 who maps or refers within the grace keeps it", %{place: place} do
    with_config([reference_grace: @never], fn ->
      {id, owner} = in_process(fn -> SharedMemory.allocate_region!(4096, @rc ++ place) end)
      marked? = fn -> SharedMemory.get_region_info!(id, place).marked end
      kill(owner)
      assert eventually(marked?)
      region = SharedMemory.map_region!(id, place)
      refute marked?.()
      SharedMemory.unmap_region!(region)
      assert marked?.()
      ref = make_ref()
      assert {:ok, 1} = ReferenceCounter.increment(id, ref, place)
      refute marked?.()
      assert {:ok, 0} = ReferenceCounter.decrement(id, ref, place)
      assert marked?.()
      SharedMemory.deallocate_region!(id, place)
    end)
  end

  test "R3.3 the owner may give its own reference back while it lives", %{place: place} do
    with_config([reference_grace: 20], fn ->
      id = SharedMemory.allocate_region!(4096, @rc ++ place)
      region = SharedMemory.map_region!(id, place)
      assert {:ok, 1} = ReferenceCounter.decrement(id, self(), place)
      assert code(ReferenceCounter.decrement(id, self(), place)) == :not_referenced
      assert {:ok, 2} = SharedMemory.write(region, "still there")
      SharedMemory.unmap_region!(region)
      assert eventually(fn -> gone?(id, place) end)
    end)
  end

  test "R3.4 readers of other OS processes count, and keep a region", %{place: place, dir: dir} do
    with_config([reference_grace: 20], fn ->
      {id, owner} =
        in_process(fn -> SharedMemory.allocate_region!(4096, [name: "across"] ++ @rc ++ place) end)

      SharedMemory.write!(id, "x", place)
      peer = Foreign.start([cleanup_interval: 3_600_000] ++ place)

      assert {:ok, %{id: ^id}} =
               Foreign.run(peer, "Snakepit.SharedMemory.map_region(#{inspect(id)})")

      # Our own reader, which the read attaches, is none of theirs.
      assert SharedMemory.read!(id, place) == "x"
      assert count(id, place) == {:ok, 2}
      assert {:ok, references} = ReferenceCounter.get_references(id, place)
      assert %{kind: :os_reader, pid: nil, holder: nil, count: 1} in references

      kill(owner)
      assert eventually(fn -> SharedMemory.get_region_info!(id, place).marked end)
      # Another one, whose grace begins later, goes; this one stays.
      {later, other} = in_process(fn -> SharedMemory.allocate_region!(4096, @rc ++ place) end)
      kill(other)
      assert eventually(fn -> gone?(later, place) end)
      assert count(id, place) == {:ok, 1}
      Foreign.kill(peer)
      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end)
  end

  test "R3.4 counts are exact when 10,000 processes map and die at once", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    test = self()

    pids =
      for n <- 1..10_000 do
        spawn(fn ->
          SharedMemory.map_region!(id, [access_mode: :read_only] ++ place)
          if rem(n, 2) == 0, do: {:ok, _} = ReferenceCounter.increment(id, self(), place)
          send(test, :mapped)
          receive do: (:stop -> :ok)
        end)
      end

    for _ <- pids, do: assert_receive(:mapped, 60_000)
    assert count(id, place) == {:ok, 15_001}
    {dying, living} = Enum.split(pids, 6_000)
    Enum.each(dying, &Process.exit(&1, :kill))
    assert eventually(fn -> count(id, place) == {:ok, 6_001} end)
    Enum.each(living, &Process.exit(&1, :kill))
    assert eventually(fn -> count(id, place) == {:ok, 1} end)
    assert eventually(fn -> SharedMemory.get_region_info!(id, place).reader_count == 1 end)
    assert Table.mappings(key(id, place)) == []
    assert map_size(:sys.get_state(Registry).ledger.processes) == 1
    assert {:ok, %{status: :ok, findings: []}} = SharedMemory.health_check(place)
    assert {:ok, %{findings: findings}} = SharedMemory.health_check()
    assert Enum.filter(findings, &(&1.check in [:bookkeeping, :segments, :processes])) == []
  end

  # The naive model: what each process has, in a map of the test's own.
  test "R3.1 R3.2 R3.5 whatever comes, goes and dies, the count is what a naive one is", %{
    place: place
  } do
    id = SharedMemory.allocate_region!(4096, place)
    :rand.seed(:exsss, {3, 1, 5})
    in_agent = fn agent, fun -> Agent.get(agent, fn _ -> fun.() end) end

    model =
      Enum.reduce(1..600, %{}, fn step, model ->
        agent = if model != %{}, do: model |> Map.keys() |> Enum.random()
        {mapped, referred} = Map.get(model, agent, {[], 0})

        model =
          case Enum.random([:start, :map, :map, :unmap, :increment, :increment, :decrement, :kill]) do
            start when start == :start or agent == nil ->
              {:ok, agent} = Agent.start(fn -> nil end)
              Map.put(model, agent, {[], 0})

            :map ->
              region = in_agent.(agent, fn -> SharedMemory.map_region!(id, place) end)
              Map.put(model, agent, {[region | mapped], referred})

            :unmap when mapped == [] ->
              answer = in_agent.(agent, fn -> SharedMemory.unmap_region(id, place) end)
              assert code(answer) == :not_mapped
              model

            :unmap ->
              region = Enum.random(mapped)
              assert code(SharedMemory.unmap_region(region)) == :not_mapped
              assert {:ok, ^id} = in_agent.(agent, fn -> SharedMemory.unmap_region(region) end)
              Map.put(model, agent, {List.delete(mapped, region), referred})

            :increment ->
              {:ok, _} = ReferenceCounter.increment(id, agent, place)
              Map.put(model, agent, {mapped, referred + 1})

            :decrement when referred == 0 ->
              assert code(ReferenceCounter.decrement(id, agent, place)) == :not_referenced
              model

            :decrement ->
              {:ok, _} = ReferenceCounter.decrement(id, agent, place)
              Map.put(model, agent, {mapped, referred - 1})

            :kill ->
              kill(agent)
              Map.delete(model, agent)
          end

        expected = Enum.reduce(model, 1, fn {_, {mapped, n}}, sum -> sum + length(mapped) + n end)

        assert eventually(fn -> count(id, place) == {:ok, expected} end), "step #{step}"
        model
      end)

    model |> Map.keys() |> Enum.each(&kill/1)
    assert eventually(fn -> count(id, place) == {:ok, 1} end)
  end

  test "marks and references outlive the registry and the expiry", %{place: place} do
    with_config([reference_grace: @never], fn ->
      {marked, owner} = in_process(fn -> SharedMemory.allocate_region!(4096, @rc ++ place) end)
      kept = SharedMemory.allocate_region!(4096, @rc ++ place)
      ref = make_ref()
      {:ok, 2} = ReferenceCounter.increment(kept, ref, place)
      kill(owner)
      assert eventually(fn -> SharedMemory.get_region_info!(marked, place).marked end)

      for name <- [Registry, Expiry] do
        old = Process.whereis(name)
        kill(old)
        assert eventually(fn -> Process.whereis(name) not in [nil, old] end)
        assert count(kept, place) == {:ok, 2}
        assert SharedMemory.get_region_info!(marked, place).marked
      end

      assert {:ok, 1} = ReferenceCounter.decrement(kept, ref, place)
      for id <- [marked, kept], do: SharedMemory.deallocate_region!(id, place)
    end)

    with_config([reference_grace: 50], fn ->
      {id, owner} = in_process(fn -> SharedMemory.allocate_region!(4096, @rc ++ place) end)
      kill(owner)
      old = Process.whereis(Expiry)
      kill(old)
      # The one that follows knows of it.
      assert eventually(fn -> gone?(id, place) end)
    end)
  end

  describe "R3.1 references and mappings of a region that has gone" do
    defp rows do
      for table <- [:snakepit_shm_references, :snakepit_shm_counts, :snakepit_shm_history],
          do: :ets.info(table, :size)
    end

    test "nothing is kept of them", %{place: place} do
      assert eventually(fn -> rows() == [0, 0, 0] end)

      for _ <- 1..20 do
        id = SharedMemory.allocate_region!(4096, place)
        assert {:ok, 2} = ReferenceCounter.increment(id, self(), place)
        assert {:ok, 3} = ReferenceCounter.increment(id, make_ref(), place)
        SharedMemory.deallocate_region!(id, place)
        assert code(ReferenceCounter.decrement(id, self(), place)) == :not_found
      end

      assert rows() == [0, 0, 0]
      refute Map.has_key?(:sys.get_state(Registry).ledger.processes, self())

      # Nor of a mapping that outlives it, and its process.
      {_id, holder} =
        in_process(fn ->
          id = SharedMemory.allocate_region!(4096, place)
          SharedMemory.map_region!(id, place)
          {:ok, _} = ReferenceCounter.increment(id, self(), place)
          SharedMemory.deallocate_region!(id, place)
        end)

      kill(holder)
      assert eventually(fn -> rows() == [0, 0, 0] end)
    end

    test "they do not count for a later one of the name, which ends by itself", context do
      %{place: place, dir: dir} = context

      with_config([reference_grace: 20], fn ->
        options = [name: "again", cleanup_policy: :reference_counted] ++ place
        SharedMemory.allocate_region!(4096, options)
        {:ok, _} = ReferenceCounter.increment("again", self(), place)
        region = SharedMemory.map_region!("again", place)
        SharedMemory.deallocate_region!("again", place)

        {{:ok, 1}, owner} =
          in_process(fn ->
            SharedMemory.allocate_region!(4096, options)
            ReferenceCounter.get_count("again", place)
          end)

        assert {:ok, [%{kind: :owner}]} = ReferenceCounter.get_references("again", place)
        assert %{reference_count: 1} = SharedMemory.get_region_info!("again", place)
        {:ok, audit} = Registry.audit(30_000)
        assert Snakepit.SharedMemory.Health.Bookkeeping.check({:ok, audit}) == []
        kill(owner)
        assert eventually(fn -> TestDir.leftovers(dir) == [] end)
        assert {:ok, "again"} = SharedMemory.unmap_region(region)
      end)
    end

    test "unmapping one leaves the count of the later one alone", %{place: place} do
      SharedMemory.allocate_region!(4096, [name: "again"] ++ place)
      old = SharedMemory.map_region!("again", place)
      SharedMemory.deallocate_region!("again", place)
      SharedMemory.allocate_region!(4096, [name: "again"] ++ place)
      new = SharedMemory.map_region!("again", place)
      assert %{reference_count: 2} = SharedMemory.get_region_info!("again", place)
      SharedMemory.unmap_region!(old)
      assert %{reference_count: 2} = SharedMemory.get_region_info!("again", place)
      # Nor is it in its history.
      changes = for change <- SharedMemory.history!("again", place), do: change.operation
      assert changes == [:allocate, :map]
      SharedMemory.unmap_region!(new)
    end
  end
end
