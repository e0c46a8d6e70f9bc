defmodule Snakepit.SharedMemory.WritersTest do
  # Kills and suspends the queue, on which other tests depend.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Jobs, Listener, Writers}

  @patience 30_000

  setup %{place: place} do
    {:ok, id: SharedMemory.allocate_region!(4096, place)}
  end

  defp key(id, place), do: {place[:dir], place[:namespace], id}
  defp free?(id, place), do: Writers.holder(key(id, place)) == nil

  defp hold(id, place) do
    test = self()

    pid =
      spawn(fn ->
        SharedMemory.with_writer!(id, place, fn region ->
          send(test, {:holds, self()})
          receive do: ({:end, text} -> SharedMemory.write!(region, text))
        end)

        send(test, {:out, self()})
      end)

    assert_receive {:holds, ^pid}, @patience
    pid
  end

  defp wait_for(id, place) do
    task =
      Task.async(fn ->
        SharedMemory.with_writer(id, [timeout: 3_600_000] ++ place, fn _ -> :mine end)
      end)

    assert eventually(fn -> Map.has_key?(:sys.get_state(Writers).queues, key(id, place)) end)
    task
  end

  defp kill_queue do
    old = Process.whereis(Writers)
    kill(old)
    assert eventually(fn -> Process.whereis(Writers) not in [nil, old] end)
    # Until it has recovered.
    assert %Writers{} = :sys.get_state(Writers)
  end

  test "a crash of the queue: who waits is told at once, who holds keeps the right", context do
    %{id: id, place: place} = context
    holder = hold(id, place)
    waiting = wait_for(id, place)
    kill_queue()

    assert {:error, %Error{code: :closed, region: ^id, operation: :with_writer} = error} =
             Task.await(waiting, @patience)

    assert error.remedy =~ "call again"
    assert code(SharedMemory.write(id, "x", place)) == :segment_busy

    assert {:error, error} = SharedMemory.with_writer(id, [timeout: 20] ++ place, & &1)
    assert error.message =~ inspect(holder)

    again = wait_for(id, place)
    send(holder, {:end, "kept"})
    assert Task.await(again, @patience) == {:ok, :mine}
    assert SharedMemory.read!(id, place) == "kept"
  end

  test "a holder that dies while there is no queue", %{id: id, place: place} do
    holder = hold(id, place)
    Process.exit(holder, :kill)
    kill_queue()
    assert eventually(fn -> free?(id, place) end)
    assert {:ok, _} = SharedMemory.write(id, "x", place)

    # The new queue watches the holders of old.
    holder = hold(id, place)
    kill_queue()
    kill(holder)

    assert SharedMemory.with_writer(id, [timeout: @patience] ++ place, fn _ -> :ok end) ==
             {:ok, :ok}
  end

  test "a holder that ends while there is no queue", %{id: id, place: place} do
    holder = hold(id, place)
    :ok = Supervisor.terminate_child(Snakepit.SharedMemory.Supervisor, Writers)

    assert code(SharedMemory.with_writer(id, place, & &1)) == :closed
    send(holder, {:end, "done"})
    assert_receive {:out, ^holder}, @patience
    assert free?(id, place)
    assert {:ok, _} = SharedMemory.write(id, "x", place)

    {:ok, _} = Supervisor.restart_child(Snakepit.SharedMemory.Supervisor, Writers)
    assert SharedMemory.with_writer(id, place, fn _ -> :mine end) == {:ok, :mine}
  end

  test "R6.4 a suspended queue: an error by the deadline, nothing comes of it later", context do
    %{id: id, place: place} = context
    :sys.suspend(Writers)

    try do
      for timeout <- [0, 30] do
        assert {:error, error} = SharedMemory.with_writer(id, [timeout: timeout] ++ place, & &1)
        assert error.code == :timeout
      end
    after
      :sys.resume(Writers)
    end

    assert %Writers{queues: queues} = :sys.get_state(Writers)
    refute Map.has_key?(queues, key(id, place))
    assert free?(id, place)
    assert {:messages, []} = Process.info(self(), :messages)
    assert {:ok, _} = SharedMemory.write(id, "x", place)
  end

  test "who holds can end while the queue is suspended", %{id: id, place: place} do
    holder = hold(id, place)
    :sys.suspend(Writers)

    try do
      send(holder, {:end, "done"})
      assert_receive {:out, ^holder}, @patience
      assert {:ok, _} = SharedMemory.write(id, "x", place)
    after
      :sys.resume(Writers)
    end
  end

  test "a region taken over from outside survives a crash of the queue", %{place: place} do
    {:ok, writer} = Native.create(native(place, "foreign"))
    {:ok, :ok} = Native.release(writer)
    holder = hold("foreign", place)
    kill_queue()
    assert {_, ^holder, _, _, :taken} = Writers.holder(key("foreign", place))
    send(holder, {:end, "ours"})
    assert_receive {:out, ^holder}, @patience
    {:ok, again} = Native.attach_writer(native(place, "foreign"))
    assert SharedMemory.read!("foreign", place) == "ours"
    {:ok, :ok} = Native.discard(again)
  end

  test "a crash while a job waits for another OS process: the job ends", %{place: place} do
    {:ok, writer} = Native.create(native(place, "foreign"))

    waiting =
      Task.async(fn ->
        SharedMemory.with_writer("foreign", [timeout: 3_600_000] ++ place, & &1)
      end)

    asking? = fn -> match?({_, _, _, _, :asking}, Writers.holder(key("foreign", place))) end
    assert eventually(asking?)
    kill_queue()
    assert code(Task.await(waiting, @patience)) == :closed
    assert eventually(fn -> Task.Supervisor.children(Jobs.Supervisor) == [] end)
    assert free?("foreign", place)
    {:ok, :ok} = Native.discard(writer)
  end

  test "the application stops while one holds and one waits", %{place: place, dir: dir} do
    {:ok, writer} = Native.create(native(place, "foreign"))
    {:ok, :ok} = Native.release(writer)
    test = self()

    holder =
      spawn(fn ->
        SharedMemory.with_writer("foreign", place, fn _ ->
          send(test, :holds)
          receive do: (:end -> :ok)
        end)

        send(test, :out)
      end)

    assert_receive :holds, @patience
    waiting = wait_for("foreign", place)

    try do
      capture_log(fn -> :ok = Application.stop(:snakepit_shared_memory) end)
      assert code(Task.await(waiting, @patience)) in [:not_started, :closed]
      assert code(SharedMemory.with_writer("foreign", place, & &1)) == :not_started
      # It was given up with the application, for others to take.
      assert {:ok, writer} = Native.attach_writer(native(place, "foreign"))
      {:ok, :ok} = Native.discard(writer)
      send(holder, :end)
      assert_receive :out, @patience
      assert TestDir.leftovers(dir) == []
    after
      {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    end
  end

  test "holders, waiters and the queue are killed at random: in the end it is free", context do
    %{id: id, place: place} = context
    SharedMemory.write!(id, <<0::64>>, place)

    count = fn region ->
      <<n::64>> = SharedMemory.read!(region)
      :erlang.yield()
      SharedMemory.write!(region, <<n + 1::64>>)
    end

    for _ <- 1..3 do
      workers =
        for _ <- 1..30 do
          spawn_monitor(fn ->
            for _ <- 1..50, do: SharedMemory.with_writer(id, [timeout: 60_000] ++ place, count)
          end)
        end

      for {pid, _monitor} <- Enum.take_random(workers, 15) do
        for _ <- 1..100, do: :erlang.yield()
        Process.exit(pid, :kill)
      end

      kill_queue()

      for {pid, monitor} <- workers do
        assert_receive {:DOWN, ^monitor, :process, ^pid, reason}, 60_000
        assert reason in [:normal, :killed, :noproc]
      end
    end

    assert eventually(fn -> free?(id, place) end)
    assert {:ok, _} = SharedMemory.write(id, "anybody", place)

    assert eventually(fn ->
             state = :sys.get_state(Writers)
             {state.queues, state.watched, state.asking} == {%{}, %{}, %{}}
           end)
  end

  test "nothing is kept of those who are through", %{id: id, place: place} do
    for _ <- 1..50, do: SharedMemory.with_writer!(id, place, & &1)
    for _ <- 1..50, do: SharedMemory.with_writer("nobody", place, & &1)

    assert eventually(fn ->
             state = :sys.get_state(Writers)
             {state.queues, state.watched, state.asking} == {%{}, %{}, %{}}
           end)
  end

  test "messages and calls of strangers are logged and change nothing" do
    queue = Process.whereis(Writers)

    log =
      capture_log(fn ->
        send(queue, :hello)
        send(queue, {:DOWN, make_ref(), :process, self(), :normal})
        GenServer.cast(queue, :what)
        GenServer.cast(queue, {:released, "nobody", make_ref()})
        assert {:error, :unexpected} = GenServer.call(queue, :what)
        assert :refused = GenServer.call(queue, {:done, make_ref(), {:error, :none}})
      end)

    assert log =~ "unexpected"
    assert Process.whereis(Writers) == queue
  end

  test "R6.3 a writer that is none locks nobody out, and ends no queue", %{id: id, place: place} do
    queue = Process.whereis(Writers)
    region = SharedMemory.map_region!(id, place)
    test = self()

    for made_up <- [%{region | writer: make_ref(), reader: make_ref()}, %{region | writer: test}] do
      assert code(SharedMemory.with_writer(made_up, fn _ -> 1 end)) == :invalid_argument
    end

    # Nor one that somebody asks the queue for who has not looked at it.
    ref = make_ref()
    target = %Snakepit.SharedMemory.Target{id: id, namespace: "n", dir: "d", key: key(id, place)}
    assert {:error, error} = Writers.acquire(target, make_ref(), ref, 1_000, :with_writer)
    assert error.code == :invalid_argument
    assert Process.whereis(Writers) == queue
    assert free?(id, place)

    # A row whose writer is none is given back like any other.
    {_, dead} = in_process(fn -> :ok end)
    kill(dead)
    :ets.insert(:snakepit_shm_writers, {key(id, place), dead, make_ref(), make_ref(), :held})
    assert [%{check: :bookkeeping, evidence: %{rows: [{_, ^dead, _, _, :held}]}}] = rights()
    kill_queue()
    assert eventually(fn -> free?(id, place) end)
    assert SharedMemory.with_writer(id, place, fn _ -> :mine end) == {:ok, :mine}
    assert rights() == []
  end

  defp rights do
    findings = SharedMemory.health_check!().findings
    Enum.filter(findings, &(&1.message =~ "rights to write"))
  end

  test "R6.3 timeout: 0 has what is free, and does not wait for what is not", context do
    %{id: id, place: place} = context

    for _ <- 1..50 do
      assert SharedMemory.with_writer(id, [timeout: 0] ++ place, fn _ -> :mine end) ==
               {:ok, :mine}
    end

    holder = hold(id, place)
    assert {:error, error} = SharedMemory.with_writer(id, [timeout: 0] ++ place, & &1)
    assert error.code == :timeout
    assert error.message =~ inspect(holder)
    send(holder, {:end, "done"})
    assert_receive {:out, ^holder}, @patience

    # Of another OS process's region the claim is asked for once.
    {:ok, writer} = Native.create(native(place, "foreign"))
    busy = SharedMemory.with_writer("foreign", [timeout: 0] ++ place, & &1)
    assert code(busy) == :segment_busy
    {:ok, :ok} = Native.release(writer)
    assert eventually(fn -> free?("foreign", place) end)
    assert {:ok, 1} = SharedMemory.with_writer("foreign", [timeout: 0] ++ place, fn _ -> 1 end)
    {:ok, writer} = Native.attach_writer(native(place, "foreign"))
    {:ok, :ok} = Native.discard(writer)
  end

  test "it is a span", %{id: id, place: place} do
    Listener.attach(self())
    event = [:snakepit, :shared_memory, :region, :with_writer]
    SharedMemory.with_writer!(id, place, fn _ -> :ok end)
    stop = event ++ [:stop]
    assert_receive {:event, ^stop, %{duration: _}, %{region: ^id, result: :ok}}

    assert_raise RuntimeError, fn ->
      SharedMemory.with_writer(id, place, fn _ -> raise "no" end)
    end

    exception = event ++ [:exception]
    assert_receive {:event, ^exception, _, %{region: ^id, kind: :error}}
  end
end
