defmodule Snakepit.SharedMemory.StrangersTest do
  # Messages, casts and calls of those who have no business with our processes; and calls of those
  # who have, while there are none.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Clock, Config, Error, Expiry, Health, Janitor, Jobs, Manager}
  alias Snakepit.SharedMemory.{Membership, Platform, Reconfiguration, ReferenceCounter}
  alias Snakepit.SharedMemory.{Registry, SecurityController, Telemetry, Writers}

  @patience 60_000
  @supervisor Snakepit.SharedMemory.Supervisor

  @servers [
    Registry,
    Expiry,
    Membership,
    Janitor,
    Writers,
    Health.Monitor,
    Reconfiguration,
    Error.Log,
    Clock,
    Telemetry.Outbox
  ]

  # What is like a message of ours but for what is in it.
  @like_ours %{
    Registry => [
      {:allocate, :a, :b, :c},
      {:allocate, :a, :b, :c, :d},
      {:deallocate, "good", :x},
      {:map, :ref, "good", :nobody, nil, nil, false},
      {:map, 1, 2, 3, 4, 5, 6},
      {:unmap, :a, :b},
      {:refer, "good", :a, :b, :c, :d},
      {:unrefer, "good", :a, :b, :c, :d},
      {:reconfigure, :other}
    ],
    Janitor => [{:reconfigure, :other}],
    Expiry => [{:reconfigure, :other}],
    Writers => [{:acquire, "good", nil, 1, 2, 3}, {:acquire, 1, 2, 3, 4, 5}]
  }

  @noticed %{
    Janitor => [
      {:snakepit_shm, :reaper, :what},
      {:snakepit_shm, :reaper, {:failed, :reason}},
      {:snakepit_shm, :reaper, {:process_ended, "1", 2}},
      {:snakepit_shm, :reaper, {:swept, %{removed: [], corrupted: nil}}}
    ],
    Health.Monitor => [{:interval, "often"}, {:interval, -1}],
    Telemetry.Outbox => [{:post, :what}, {:post, {[], 1, 2}}, {:emitted, :nobody}],
    Registry => [{:waited, :for, :nothing}, {:waited, 0}, {:abandon, "good", nil}],
    Expiry => [{:grace, "good", nil, false}, {:idle, "good", nil}, :sessions],
    Writers => [{{:ended, "good", nil}, nil, :process, nil, nil}]
  }

  test "the list is of every process that the application supervises" do
    children =
      for {id, pid, _type, _modules} <- Supervisor.which_children(@supervisor), do: {id, pid}

    assert length(children) == length(@servers) + 1
    pids = Enum.map(@servers, &Process.whereis/1)
    assert pids -- Enum.map(children, &elem(&1, 1)) == []
  end

  for server <- @servers do
    test "#{inspect(server)} lives, logs what it was sent, and refuses what it was asked", %{
      place: place
    } do
      id = SharedMemory.allocate_region!(4096, place)
      server = unquote(server)
      pid = Process.whereis(server)
      state = quiet(pid)

      log =
        capture_log(fn ->
          for message <- [:stranger, {:stranger, 1}, "stranger", %{stranger: 1}, nil] do
            send(pid, {:sent, message})
            GenServer.cast(pid, {:cast, message})
            assert {:error, :unexpected} = GenServer.call(pid, {:called, message})
          end

          for message <- Map.get(@noticed, server, []) do
            send(pid, message)
            GenServer.cast(pid, message)
          end

          for message <- Map.get(@like_ours, server, []) do
            assert {:error, :unexpected} = GenServer.call(pid, message)
          end

          # What nobody is being told any more, as the answer to a call that was given up.
          send(pid, {make_ref(), :late})
          send(pid, {:EXIT, spawn(fn -> :ok end), :normal})
          send(pid, {:DOWN, make_ref(), :process, self(), :killed})
          assert quiet(pid) == state
        end)

      assert Process.whereis(server) == pid
      assert log =~ "{:sent, :stranger}"
      assert log =~ "{:cast, :stranger}"
      assert log =~ "unexpected call from #{inspect(self())}: {:called, :stranger}"

      noticed =
        15 + length(Map.get(@noticed, server, [])) + length(Map.get(@like_ours, server, []))

      assert length(String.split(log, "unexpected")) - 1 >= noticed

      assert {:ok, 2} = SharedMemory.write(id, "still", place)
      assert %{reference_count: 1} = SharedMemory.get_region_info!(id, place)
      assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)
    end
  end

  # The state without what goes on by itself: timers, sweeps, and the ends of earlier tests'
  # processes.
  defp quiet(pid) do
    case :sys.get_state(pid) do
      %{} = state ->
        Map.drop(state, [
          :timer,
          :sweep,
          :seen,
          :graces,
          :status,
          :ledger,
          :jobs,
          :monitors,
          :told
        ])

      _timer_or_membership ->
        :no_map
    end
  end

  test "the supervisor of the jobs: a message harms nothing; a call ends it, as any of OTP's, and loses nothing",
       %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    jobs = Process.whereis(Module.concat(Jobs, Supervisor))

    capture_log(fn ->
      send(jobs, :stranger)
      GenServer.cast(jobs, :stranger)
      assert is_list(Task.Supervisor.children(jobs))
      assert Process.alive?(jobs)
      assert catch_exit(GenServer.call(jobs, :stranger))
    end)

    assert SharedMemory.read(id, place) |> code() == :empty
    assert {:ok, other} = SharedMemory.allocate_region(4096, place)
    for id <- [id, other], do: assert({:ok, ^id} = SharedMemory.deallocate_region(id, place))
  end

  # -- while it starts, runs and stops --------------------------------------------------------

  defp calls(place) do
    id = "nobody"

    [
      fn -> SharedMemory.allocate_region(4096, place) end,
      fn -> SharedMemory.map_region(id, place) end,
      fn -> SharedMemory.unmap_region(id, place) end,
      fn -> SharedMemory.deallocate_region(id, place) end,
      fn -> SharedMemory.write(id, "y", place) end,
      fn -> SharedMemory.write(id, "y") end,
      fn -> SharedMemory.read(id, place) end,
      fn -> SharedMemory.read(id) end,
      fn -> SharedMemory.seal(id, place) end,
      fn -> SharedMemory.binary(id, place) end,
      fn -> SharedMemory.share("x", place) end,
      fn -> SharedMemory.handle(id, place) end,
      fn -> SharedMemory.fetch(%{"__snakepit_shm__" => 1}, place) end,
      fn -> SharedMemory.with_writer(id, [timeout: 1] ++ place, & &1) end,
      fn -> SharedMemory.get_region_info(id, place) end,
      fn -> SharedMemory.list_regions(place) end,
      fn -> SharedMemory.release_session(id) end,
      fn -> SharedMemory.release_worker(id) end,
      fn -> SharedMemory.cleanup_regions(place) end,
      fn -> SharedMemory.history(id, place) end,
      fn -> SharedMemory.subscribe(id, place) end,
      fn -> SharedMemory.health_check([timeout: 1_000] ++ place) end,
      fn -> SharedMemory.stats() end,
      fn -> SharedMemory.reset_stats() end,
      fn -> SharedMemory.recommendations() end,
      fn -> SharedMemory.reconfigure([]) end,
      fn -> Manager.list_regions(Map.new(place)) end,
      fn -> ReferenceCounter.increment(id, self(), place) end,
      fn -> ReferenceCounter.decrement(id, self(), place) end,
      fn -> ReferenceCounter.get_count(id, place) end,
      fn -> ReferenceCounter.get_references(id, place) end,
      fn -> Platform.capabilities() end,
      fn -> Config.fetch(:test) end,
      fn -> Error.handle_error(:platform_error, %{}, :eperm) end,
      fn -> SecurityController.validate_access(id, self(), :read) end
    ]
  end

  test "while the application starts and stops, every call answers or says why; none exits", %{
    place: place,
    dir: dir
  } do
    test = self()
    calls = calls(place)
    asked = :counters.new(length(calls), [])

    asking =
      for {call, number} <- Enum.with_index(calls, 1) do
        spawn_link(fn ->
          ask = fn ask, seen ->
            seen = MapSet.put(seen, answer(call))
            :counters.add(asked, number, 1)

            receive do
              :stop -> send(test, {:asked, number, seen})
            after
              1 -> ask.(ask, seen)
            end
          end

          ask.(ask, MapSet.new())
        end)
      end

    # A call may have begun before; the second from now on has not.
    each_asks_twice = fn ->
      before = for number <- 1..length(calls), do: :counters.get(asked, number)

      assert eventually(fn ->
               Enum.with_index(before, 1)
               |> Enum.all?(fn {n, number} -> :counters.get(asked, number) >= n + 2 end)
             end)
    end

    capture_log(fn ->
      for round <- 1..8 do
        :ok = Application.stop(:snakepit_shared_memory)
        # Some rounds without a rest.
        if rem(round, 3) == 0, do: each_asks_twice.()
        {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
        if rem(round, 3) == 1, do: each_asks_twice.()
      end

      for pid <- asking, do: send(pid, :stop)
    end)

    for number <- 1..length(calls) do
      assert_receive {:asked, ^number, seen}, @patience
      refute Enum.any?(seen, &match?({:raised, _}, &1)), "call #{number}: #{inspect(seen)}"
      # Those two need no application.
      if number <= length(calls) - 2, do: assert(:not_started in seen, "call #{number}")
      assert MapSet.size(seen) > 1 or number > length(calls) - 2, "call #{number}"
    end

    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    assert {:ok, _} = SharedMemory.health_check()
  end

  defp answer(call) do
    case call.() do
      {:ok, _value} -> :ok
      {:error, %Error{code: code, remedy: remedy}} when is_binary(remedy) -> code
      other -> {:raised, other}
    end
  catch
    kind, reason -> {:raised, {kind, reason, __STACKTRACE__}}
  end
end
