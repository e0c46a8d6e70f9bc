defmodule Snakepit.SharedMemory.LimitsTest do
  use ExUnit.Case, async: true

  alias Snakepit.SharedMemory.{Alerts, Config, Limits, Waiting}

  # The pid is only a name here.
  defp record(owner, session, bytes) do
    %{owner_pid: owner, owned: true, session: session, bytes: bytes, target: %{id: "r"}}
  end

  defp config(limits) do
    {:ok, config} = Config.new(limits)
    config
  end

  # The naive model: a list of what is held, added up anew for every question.
  defp fits?(held, record, limits) do
    sum = fn records -> records |> Enum.map(& &1.bytes) |> Enum.sum() end
    of_process = Enum.filter(held, &(&1.owner_pid == record.owner_pid))
    of_session = Enum.filter(held, &(&1.session == record.session))

    checks = [
      {held, :max_regions, :max_total_memory},
      {of_process, :max_regions_per_process, :max_memory_per_process}
      | if(record.session,
          do: [{of_session, :max_regions_per_session, :max_memory_per_session}],
          else: []
        )
    ]

    Enum.all?(checks, fn {records, regions, bytes} ->
      length(records) + 1 <= (limits[regions] || :infinity) and
        sum.(records) + record.bytes <= (limits[bytes] || :infinity)
    end)
  end

  defp random_limits do
    [
      max_regions: Enum.random(5..20),
      max_total_memory: Enum.random(5..20) * 4096,
      max_regions_per_process: Enum.random([nil, 2, 4]),
      max_memory_per_process: Enum.random([nil, 8192, 20_480]),
      max_regions_per_session: Enum.random([nil, 1, 5]),
      max_memory_per_session: Enum.random([nil, 8192, 16_384])
    ]
  end

  test "R12.3 whatever comes and goes, exactly what a naive count lets in is let in" do
    pids = for _ <- 1..4, do: spawn(fn -> :ok end)

    for seed <- 1..50 do
      :rand.seed(:exsss, {seed, 4, 12})
      limits = random_limits()
      config = config(limits)

      {usage, held} =
        Enum.reduce(1..200, {Limits.new(), []}, fn _, {usage, held} ->
          if held != [] and :rand.uniform(3) == 1 do
            gone = Enum.random(held)
            {Limits.release(usage, Limits.scopes(gone), gone.bytes), List.delete(held, gone)}
          else
            session = Enum.random([nil, "a", "b"])
            record = record(Enum.random(pids), session, Enum.random(1..3) * 4096)

            case Limits.admit(usage, Limits.scopes(record), record.bytes, config) do
              {:ok, usage, _approached} ->
                assert fits?(held, record, limits), "seed #{seed}"
                {usage, [record | held]}

              {:full, _state} ->
                refute fits?(held, record, limits), "seed #{seed}"
                {usage, held}
            end
          end
        end)

      # What all have given back leaves nothing.
      left = Enum.reduce(held, usage, &Limits.release(&2, Limits.scopes(&1), &1.bytes))
      assert left == %{}
    end
  end

  test "R9.5 a limit is approached at four fifths, once a crossing" do
    config = config(max_regions: 10)

    add = fn usage ->
      {:ok, usage, approached} = Limits.admit(usage, [:node], 4096, config)
      {usage, for(%{limit: :max_regions} = state <- approached, do: {state.used, state.maximum})}
    end

    {usage, seen} =
      Enum.reduce(1..10, {Limits.new(), []}, fn _, {usage, seen} ->
        {usage, approached} = add.(usage)
        {usage, seen ++ [approached]}
      end)

    assert seen == [[], [], [], [], [], [], [], [{8, 10}], [], []]
    usage = Enum.reduce(1..3, usage, fn _, usage -> Limits.release(usage, [:node], 4096) end)
    assert {_usage, [{8, 10}]} = add.(usage)
  end

  test "R9.5 a limit that is near is said again when it was well below, and after a pause" do
    near = fn used ->
      %{limit: :max_regions, scope: :node, unit: :regions, used: used, maximum: 10}
    end

    assert {[%{used: 8}], alerts} = Alerts.due(Alerts.new(), [near.(8)], 0)
    # Not well below.
    alerts = Alerts.eased(alerts, [near.(7)])
    assert {[], alerts} = Alerts.due(alerts, [near.(8)], 20_000)
    # Well below, but just now said.
    alerts = Alerts.eased(alerts, [near.(6)])
    alerts = Alerts.eased(alerts, [near.(7)])
    assert {[], alerts} = Alerts.due(alerts, [near.(8)], 9_999)
    assert {[%{used: 9}], alerts} = Alerts.due(alerts, [near.(9)], 10_000)
    # Each scope and limit by itself.
    other = %{near.(8) | scope: {:session, "s"}}
    assert {[^other], alerts} = Alerts.due(alerts, [near.(8), other], 10_001)
    # What may be said again is not kept.
    alerts = Alerts.eased(alerts, [near.(0), %{other | used: 0}])
    assert {[], alerts} = Alerts.due(alerts, [], 30_000)
    assert alerts == Alerts.new()
  end

  test "a recommendation names the limit, what is held and what to do" do
    state = %{limit: :max_regions, scope: :node, unit: :regions, used: 80, maximum: 100}
    assert Limits.recommendation(state) =~ "80 of 100 regions are in use"
    assert Limits.recommendation(state) =~ "raise :max_regions to 120 or more"
    of_session = %{state | scope: {:session, "s"}, limit: :max_regions_per_session}
    assert Limits.recommendation(of_session) =~ ~s(of session "s")
    assert Limits.recommendation(of_session) =~ "release sessions"
    of_process = %{state | scope: {:process, self()}, limit: :max_regions_per_process}
    assert Limits.recommendation(of_process) =~ inspect(self())
  end

  describe "waiting" do
    defp waiter(name, scopes, bytes, state) do
      %{name: name, scopes: scopes, bytes: bytes, state: state}
    end

    defp full(usage, scopes, bytes, config) do
      {:full, state} = Limits.admit(usage, scopes, bytes, config)
      state
    end

    test "nobody is overtaken by one who needs less of the same" do
      config = config(max_total_memory: 40_960)
      usage = Limits.add(Limits.new(), [:node], 36_864)
      state = full(usage, [:node], 20_480, config)
      {_, waiting} = Waiting.add(Waiting.new(), waiter(:large, [:node], 20_480, state))
      {_, waiting} = Waiting.add(waiting, waiter(:small, [:node], 4096, state))
      assert %{scope: :node} = Waiting.ahead(waiting, [:node])
      # There is room for the small one, but it came later.
      assert {nil, waiting} = Waiting.next(waiting, usage, config)
      usage = Limits.release(usage, [:node], 36_864)
      assert {%{name: :large}, waiting} = Waiting.next(waiting, usage, config)
      usage = Limits.add(usage, [:node], 20_480)
      assert {%{name: :small}, waiting} = Waiting.next(waiting, usage, config)
      assert {nil, waiting} = Waiting.next(waiting, usage, config)
      assert {Waiting.size(waiting), Waiting.ahead(waiting, [:node])} == {0, nil}
    end

    test "R2.5 one that can never fit is taken out, whatever it lacks now" do
      config = config(max_total_memory: 40_960, max_regions: 1)
      usage = Limits.add(Limits.new(), [:node], 4096)
      state = full(usage, [:node], 45_056, config)
      assert state.limit == :max_regions
      assert %{limit: :max_total_memory} = Limits.never(usage, [:node], 45_056, config)
      assert Limits.never(usage, [:node], 40_960, config) == nil
      {_, waiting} = Waiting.add(Waiting.new(), waiter(:never, [:node], 45_056, state))
      {_, waiting} = Waiting.add(waiting, waiter(:small, [:node], 4096, state))
      assert {%{name: :never}, waiting} = Waiting.next(waiting, usage, config)
      assert {nil, waiting} = Waiting.next(waiting, usage, config)
      assert {%{name: :small}, _} = Waiting.next(waiting, Limits.new(), config)
    end

    test "who waits for room of a session is in the way of that session only" do
      config = config(max_regions_per_session: 1)
      a = [:node, {:session, "a"}]
      b = [:node, {:session, "b"}]
      usage = Limits.new() |> Limits.add(a, 4096) |> Limits.add(b, 4096)

      {first, waiting} =
        Waiting.add(Waiting.new(), waiter(1, a, 4096, full(usage, a, 4096, config)))

      {_, waiting} = Waiting.add(waiting, waiter(2, a, 4096, full(usage, a, 4096, config)))
      {_, waiting} = Waiting.add(waiting, waiter(3, b, 4096, full(usage, b, 4096, config)))
      assert Waiting.ahead(waiting, [:node]) == nil
      assert %{scope: {:session, "a"}} = Waiting.ahead(waiting, a)
      assert {%{name: 3}, waiting} = Waiting.next(waiting, Limits.release(usage, b, 4096), config)
      assert {%{name: 1}, waiting} = Waiting.remove(waiting, first)
      assert {nil, ^waiting} = Waiting.remove(waiting, first)
      assert {%{name: 2}, waiting} = Waiting.next(waiting, Limits.release(usage, a, 4096), config)
      assert Waiting.size(waiting) == 0
    end

    test "whatever comes and goes, all are let in in the end, in order within each session" do
      config = config(max_regions: 6, max_regions_per_session: 2, max_total_memory: 65_536)

      for seed <- 1..50 do
        :rand.seed(:exsss, {seed, 8, 15})

        wanted =
          for n <- 1..40 do
            session = Enum.random(["a", "b", "c", "d"])
            {n, [:node, {:session, session}], Enum.random(1..4) * 4096}
          end

        state = %{limit: :max_regions, scope: :node, unit: :regions, used: 6, maximum: 6}

        waiting =
          Enum.reduce(wanted, Waiting.new(), fn {n, scopes, bytes}, waiting ->
            {_id, waiting} = Waiting.add(waiting, waiter(n, scopes, bytes, state))
            waiting
          end)

        admitted = run(waiting, Limits.new(), [], [], config)
        assert Enum.sort(Enum.map(admitted, & &1.name)) == Enum.to_list(1..40)

        for session <- ["a", "b", "c", "d"] do
          names = for %{name: n, scopes: [_, {_, ^session}]} <- admitted, do: n
          assert names == Enum.sort(names), "seed #{seed}"
        end
      end
    end

    defp run(waiting, usage, held, admitted, config) do
      case Waiting.next(waiting, usage, config) do
        {nil, waiting} ->
          if Waiting.size(waiting) == 0 do
            assert waiting.blocked == %{}
            Enum.reverse(admitted)
          else
            # Somebody always can go, so somebody always can come.
            gone = Enum.random(held)
            usage = Limits.release(usage, gone.scopes, gone.bytes)
            run(waiting, usage, List.delete(held, gone), admitted, config)
          end

        {waiter, waiting} ->
          assert {:ok, usage, _} = Limits.admit(usage, waiter.scopes, waiter.bytes, config)
          run(waiting, usage, [waiter | held], [waiter | admitted], config)
      end
    end
  end
end
