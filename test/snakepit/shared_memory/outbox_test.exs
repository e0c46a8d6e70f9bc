defmodule Snakepit.SharedMemory.OutboxTest do
  # Handlers of events that are slow, hang, end or call back. Alone: they hold up all events.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Health, Listener, Table, Telemetry}
  alias Snakepit.SharedMemory.Telemetry.Outbox

  @expired [:snakepit, :shared_memory, :cleanup, :expired]
  @marked [:snakepit, :shared_memory, :cleanup, :marked]

  setup do
    Listener.load()
    :ok
  end

  # Until the test has ended, however the handler fares.
  defp handle(event, fun) do
    handler = fn _event, measurements, metadata, _config -> fun.(measurements, metadata) end
    id = "outbox-#{System.unique_integer()}"
    apply(:telemetry, :attach_many, [id, [event], handler, nil])

    on_exit(fn ->
      apply(:telemetry, :detach, [id])
      # What it holds up is not for the next test.
      kill(Process.whereis(Outbox))
      eventually(fn -> Process.whereis(Outbox) != nil end)
    end)
  end

  # A handler that tells the test of its event, and returns when it is let go.
  defp hold(event) do
    test = self()

    handle(event, fn _measurements, metadata ->
      send(test, {:held, self(), metadata.region})
      receive do: (:go -> :ok)
    end)
  end

  defp status, do: GenServer.call(Outbox, :status)

  test "R10.3 events come in the order in which they were posted, one after the other" do
    hold(@marked)
    for n <- 1..20, do: Telemetry.marked("r#{n}")

    for n <- 1..20 do
      region = "r#{n}"
      assert_receive {:held, worker, ^region}, 10_000
      refute_received {:held, _, _}
      waiting = 20 - n
      assert %{event: @marked, waiting: ^waiting, dropped: 0} = status()
      send(worker, :go)
    end

    assert eventually(fn -> status() == :idle end)
  end

  test "R10.3 a handler that does not return holds up no expiry, no janitor, no change of the configuration",
       %{place: place, dir: dir} do
    hold(@expired)

    for _ <- 1..3, do: SharedMemory.allocate_region!(4096, [timeout: 20] ++ place)
    assert_receive {:held, worker, _region}, 10_000
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    # Whoever is asked to answer here would wait for the handler.
    assert SharedMemory.reconfigure!(grace: 11_000).applied == [:grace]
    assert SharedMemory.reconfigure!(grace: 10_000).applied == [:grace]
    assert SharedMemory.health_check!([timeout: 60_000] ++ place).status == :ok
    send(worker, :go)
    for _ <- 1..2, do: assert_receive({:held, ^worker, _region}, 10_000) && send(worker, :go)
  end

  test "R10.3 a handler may call the library", %{place: place} do
    test = self()

    handle(@expired, fn _measurements, _metadata ->
      report = SharedMemory.health_check!([timeout: 60_000] ++ place)
      send(test, {:checked, report.findings})
    end)

    SharedMemory.allocate_region!(4096, [timeout: 20] ++ place)
    assert_receive {:checked, []}, 60_000
  end

  test "R10.3 the application ends within a second of a handler that does not" do
    hold(@marked)
    Telemetry.marked("r")
    assert_receive {:held, worker, "r"}, 10_000
    monitor = Process.monitor(worker)
    {us, :ok} = :timer.tc(fn -> Application.stop(:snakepit_shared_memory) end)
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    assert us < 10_000_000
    assert_receive {:DOWN, ^monitor, :process, ^worker, :killed}, 10_000
  end

  test "R10.3 what is posted just before the end is emitted" do
    test = self()
    handle(@marked, fn _measurements, %{region: region} -> send(test, {:emitted, region}) end)
    for n <- 1..50, do: Telemetry.marked("r#{n}")
    :ok = Application.stop(:snakepit_shared_memory)
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    for n <- 1..50, do: assert_received({:emitted, "r" <> _} when n > 0)
  end

  test "R10.3 beyond a thousand that wait events are dropped, counted and told once" do
    hold(@marked)
    SharedMemory.reset_stats!()

    log =
      capture_log(fn ->
        for n <- 0..1_299, do: Telemetry.marked("r#{n}")
        assert_receive {:held, worker, "r0"}, 10_000
        assert %{waiting: 1_000, dropped: 299, busy_ms: ms} = status()
        assert ms >= 0
        assert SharedMemory.stats!().events_dropped == 299

        for n <- 1..1_000 do
          send(worker, :go)
          region = "r#{n}"
          assert_receive {:held, ^worker, ^region}, 10_000
        end

        send(worker, :go)
        assert eventually(fn -> status() == :idle end)
      end)

    assert [_once] = Regex.scan(~r/has not returned/, log)
  end

  test "R13.4 the health check tells of a handler that does not return" do
    late = %{event: @marked, busy_ms: 6_000, waiting: 3, dropped: 0}
    assert Health.Processes.events(Outbox, 10_000) == []
    stand_in = spawn_link(fn -> answer(late) end)

    assert [%{check: :events, severity: :warning} = finding] =
             Health.Processes.events(stand_in, 10_000)

    assert finding.message =~ "6000 ms: 3 events wait" and is_binary(finding.remedy)
  end

  defp answer(status) do
    receive do: ({:"$gen_call", from, :status} -> GenServer.reply(from, status))
  end

  test "R10.3 a handler that ends the process it runs in takes the next events from nobody" do
    test = self()

    handle(@marked, fn _measurements, %{region: region} ->
      if region == "deadly", do: Process.exit(self(), :kill)
      send(test, {:emitted, region})
    end)

    Telemetry.marked("deadly")
    Telemetry.marked("next")
    assert_receive {:emitted, "next"}, 10_000
    refute_received {:emitted, "deadly"}
  end

  test "an owner's death is counted without a listener as well", %{place: place} do
    :persistent_term.put(:snakepit_shm_telemetry, false)
    SharedMemory.reset_stats!()
    {id, owner} = in_process(fn -> SharedMemory.allocate_region!(4096, place) end)
    kill(owner)
    assert eventually(fn -> SharedMemory.stats!().cleanup.owner_down == 1 end)
    assert eventually(fn -> Table.record({place[:dir], place[:namespace], id}) == :error end)
  end
end
