defmodule Snakepit.SharedMemory.SurvivalTest do
  # Kills every process of the application again and again while others work with regions.
  # SNAKEPIT_SURVIVAL_ROUNDS says how often each.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Clock, Expiry, Health, Janitor, Jobs, Membership, Reconfiguration}
  alias Snakepit.SharedMemory.{ReferenceCounter, Registry, Table, Writers}
  alias Snakepit.SharedMemory.Telemetry.Outbox

  @rounds String.to_integer(System.get_env("SNAKEPIT_SURVIVAL_ROUNDS", "100"))
  @supervised [Jobs.Supervisor, Registry, Expiry, Membership, Janitor] ++
                [Writers, Health.Monitor, Reconfiguration, Error.Log, Clock, Outbox]
  # Fewer than the supervisor forgives, in its five seconds, which it counts by whole seconds.
  @forgiven 180
  @window_ms 6_500

  @moduletag :capture_log
  @moduletag timeout: 3_600_000

  # Longer than any answer may take.
  @answer_ms 30_000

  setup do
    # What earlier tests killed is forgotten with the supervisor that counted it; what is changed here
    # afterwards.
    before = Application.get_env(:snakepit, :shared_memory)
    restart(before)
    on_exit(fn -> restart(before) end)
  end

  test "these are all the processes that the supervisor has" do
    children = Supervisor.which_children(Snakepit.SharedMemory.Supervisor)

    names =
      for {_id, pid, _type, _modules} <- children do
        {:registered_name, name} = Process.info(pid, :registered_name)
        name
      end

    assert Enum.sort(names) == Enum.sort(@supervised)
  end

  defp kill_paced(name, before) do
    now = System.monotonic_time(:millisecond)
    recent = Enum.filter(before, &(&1 > now - @window_ms))

    if length(recent) >= @forgiven do
      oldest = Enum.min(recent)
      assert eventually(fn -> System.monotonic_time(:millisecond) > oldest + @window_ms end)
    end

    assert eventually(fn -> Process.whereis(name) != nil end)
    old = Process.whereis(name)
    if old, do: Process.exit(old, :kill)
    assert eventually(fn -> Process.whereis(name) not in [nil, old] end)
    [System.monotonic_time(:millisecond) | recent]
  end

  # One process that does everything, over and over, until it is told to stop; it answers how often it
  # did, how often the counter was its to change, and how long a round took at most. It ends with
  # what went another way than it should. Only calls that need a process which has just been killed
  # may be interrupted, and say so.
  defp work(done, steady, place, test) do
    receive do
      :stop -> send(test, {:finished, self(), done})
    after
      0 ->
        started = System.monotonic_time(:millisecond)
        options = [name: "w#{:erlang.unique_integer([:positive])}", slots: 1] ++ place

        with {:ok, id} <- interrupted(SharedMemory.allocate_region(4096, options)) do
          use_own(id, place)
        end

        with {:ok, handle} <- interrupted(SharedMemory.share("shared", place)) do
          use_handle(handle, place)
        end

        use_steady(Enum.random(steady), place)
        added = count_up(place)
        look_around(place)
        took = System.monotonic_time(:millisecond) - started

        done = %{
          rounds: done.rounds + 1,
          added: done.added + added,
          longest: max(done.longest, took)
        }

        work(done, steady, place, test)
    end
  end

  defp interrupted({:error, %{code: :closed, remedy: "call again" <> _}}), do: :interrupted
  defp interrupted({:ok, answer}), do: {:ok, answer}

  defp use_handle(handle, place) do
    {:ok, "shared"} = SharedMemory.fetch(handle, dir: place[:dir])
    {:ok, _} = SharedMemory.deallocate_region(handle, dir: place[:dir])
    {:error, %{code: :not_found}} = SharedMemory.fetch(handle, dir: place[:dir])
  end

  # Whoever gets the right adds one; nobody else's one is lost.
  defp count_up(place) do
    add = fn region ->
      n = region |> SharedMemory.read!() |> String.to_integer()
      SharedMemory.write!(region, Integer.to_string(n + 1))
    end

    case interrupted(SharedMemory.with_writer("counter", [timeout: @answer_ms] ++ place, add)) do
      {:ok, _version} -> 1
      :interrupted -> 0
    end
  end

  # A process that was just killed may be missed, but nothing that is counted.
  defp look_around(place) do
    {:ok, %{operations: %{write: %{count: _}}}} = SharedMemory.stats()
    {:ok, %{findings: findings}} = SharedMemory.health_check(place)

    [] =
      Enum.filter(findings, &(&1.check in [:bookkeeping, :segments] and &1.severity == :critical))

    changes = [history_limit: Enum.random(1..9), health_check_interval: Enum.random([nil, 50])]
    interrupted(SharedMemory.reconfigure(changes))
    {:ok, _} = SharedMemory.recommendations()
  end

  defp use_own(id, place) do
    {:ok, sub} = SharedMemory.subscribe(id, place)
    {:ok, 2} = SharedMemory.write(id, "mine", place)

    receive do
      {:snakepit_shm, ^sub, {:changed, ^id, 2}} -> {:ok, ^sub} = SharedMemory.unsubscribe(sub)
    after
      @answer_ms -> raise "not told of a change"
    end

    {:ok, region} = SharedMemory.map_region(id, place)
    {:ok, "mine"} = SharedMemory.read(region)
    ref = make_ref()
    {:ok, 3} = ReferenceCounter.increment(id, ref, place)
    {:ok, 2} = ReferenceCounter.decrement(id, ref, place)
    {:error, %{code: :not_referenced}} = ReferenceCounter.decrement(id, ref, place)
    {:ok, %{reference_count: 2}} = SharedMemory.get_region_info(id, place)
    {:ok, ^id} = SharedMemory.unmap_region(region)
    {:error, %{code: :not_mapped}} = SharedMemory.unmap_region(region)
    {:ok, ^id} = SharedMemory.deallocate_region(id, place)
    {:error, %{code: :not_found}} = SharedMemory.deallocate_region(id, place)
  end

  defp use_steady(id, place) do
    {:ok, region} = SharedMemory.map_region(id, [access_mode: :read_only] ++ place)
    {:ok, ^id} = SharedMemory.read(region)
    {:ok, ^id} = SharedMemory.read(id, place)
    {:ok, ^id} = SharedMemory.unmap_region(region)
  end

  defp report(done) do
    if System.get_env("SNAKEPIT_SURVIVAL_ROUNDS") do
      rounds = done |> Enum.map(& &1.rounds) |> Enum.sum()
      longest = done |> Enum.map(& &1.longest) |> Enum.max()

      IO.puts(
        "#{@rounds * length(@supervised)} kills, #{rounds} rounds of work, longest #{longest} ms"
      )
    end
  end

  test "R8.3 each process killed #{@rounds} times under load: no region lost, no count wrong", %{
    place: place,
    dir: dir
  } do
    test = self()

    # Regions that nothing may happen to, with 0 to 4 mappings and as many references.
    {steady, holder} =
      in_process(fn ->
        for n <- 0..99 do
          policy = Enum.at([:automatic, :manual, :reference_counted], rem(n, 3))
          options = [name: "steady#{n}", cleanup_policy: policy, session: "s#{rem(n, 7)}"]
          id = SharedMemory.allocate_region!(4096, options ++ place)
          SharedMemory.write!(id, id, place)
          for _ <- 1..rem(n, 5)//1, do: SharedMemory.map_region!(id, place)
          for _ <- 1..rem(n, 5)//1, do: {:ok, _} = ReferenceCounter.increment(id, self(), place)
          id
        end
      end)

    SharedMemory.allocate_region!(4096, [name: "counter", owner: holder] ++ place)
    SharedMemory.write!("counter", "0", place)
    idle = %{rounds: 0, added: 0, longest: 0}
    workers = for _ <- 1..6, do: spawn_link(fn -> work(idle, steady, place, test) end)
    order = @supervised |> List.duplicate(@rounds) |> List.flatten() |> Enum.shuffle()
    Enum.reduce(order, [], &kill_paced/2)

    Enum.each(workers, &send(&1, :stop))

    done =
      for pid <- workers do
        assert_receive {:finished, ^pid, %{rounds: n} = done} when n > 0, @answer_ms
        done
      end

    # A round is a dozen calls that may each have waited for a process to come back.
    assert Enum.all?(done, &(&1.longest < @answer_ms))
    added = Enum.map(done, & &1.added)
    assert SharedMemory.read!("counter", place) == Integer.to_string(Enum.sum(added))
    assert Enum.all?(added, &(&1 > 0))
    SharedMemory.deallocate_region!("counter", place)
    report(done)

    for {id, n} <- Enum.with_index(steady) do
      assert SharedMemory.read!(id, place) == id
      expected = 1 + 2 * rem(n, 5)

      assert eventually(fn ->
               SharedMemory.get_region_info!(id, place).reference_count == expected
             end)
    end

    # What the registry adds up is what there is, and nothing of the workers is left.
    assert eventually(fn -> length(SharedMemory.list_regions!(place)) == 100 end)
    ledger = :sys.get_state(Registry).ledger
    assert ledger.usage[:node] == {100, 100 * 16_384}
    assert ledger.usage[{:process, holder}] == {100, 100 * 16_384}
    assert ledger.usage[{:session, "s0"}] == {15, 15 * 16_384}
    assert Map.keys(ledger.processes) == [holder]
    assert length(Table.all_mappings()) == 200

    kill(holder)
    assert eventually(fn -> length(SharedMemory.list_regions!([local: true] ++ place)) < 67 end)
    for n <- 0..6, do: SharedMemory.release_session!("s#{n}")
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    assert :sys.get_state(Registry).ledger.usage == %{}
  end

  test "R12.1 a registry that is killed with 10,000 regions knows them all again", %{
    place: place,
    dir: dir
  } do
    with_config([max_regions: 10_001], fn ->
      options = [slots: 1, reserve: :lazy, max_readers: 1] ++ place

      {ids, holders} =
        1..10
        |> Enum.map(fn n ->
          in_process(fn ->
            for k <- 1..1000 do
              id = SharedMemory.allocate_region!(4096, [name: "r#{n}-#{k}"] ++ options)
              if k == 1, do: SharedMemory.map_region!(id, place)
              id
            end
          end)
        end)
        |> Enum.unzip()

      before = :sys.get_state(Registry).ledger
      old = Process.whereis(Registry)
      kill(old)
      # A call that comes at once is answered, by the one that follows.
      assert {:ok, _} = SharedMemory.allocate_region(4096, options)
      assert code(SharedMemory.allocate_region(4096, options)) == :resource_exhausted
      now = :sys.get_state(Registry).ledger
      assert now.usage[:node] == {10_001, 10_001 * 4096}

      for pid <- holders do
        assert now.processes[pid].owned == before.processes[pid].owned
        assert now.processes[pid].mapped == before.processes[pid].mapped
      end

      # Each owner is watched again.
      [first | rest] = holders
      [[id | _] | _] = ids
      kill(first)
      assert eventually(fn -> code(SharedMemory.get_region_info(id, place)) == :not_found end)
      assert eventually(fn -> match?({9001, _}, :sys.get_state(Registry).ledger.usage[:node]) end)
      Enum.each(rest, &kill/1)
      assert eventually(fn -> map_size(:sys.get_state(Registry).ledger.processes) == 1 end)
      assert eventually(fn -> length(TestDir.leftovers(dir)) == 2 end, 120_000)
    end)
  end
end
