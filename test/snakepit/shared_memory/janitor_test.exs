defmodule Snakepit.SharedMemory.JanitorTest do
  # Other operating system processes die, and what they left is dealt with. Alone, for events are
  # switched on for the whole VM.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Config, Foreign, Janitor, Listener}

  @moduletag timeout: 180_000
  @patience 30_000

  # A janitor of this test's namespace; that of the application has another.
  defp start_janitor(place, settings) do
    {:ok, config} = Config.new(settings ++ place)
    start_supervised!({Janitor, {config, []}})
  end

  # Never sweeps by itself what a test means to leave to another.
  defp idle(place),
    do: [cleanup_interval: 3_600_000, grace: 3_600_000, mode: :simulation] ++ place

  defp allocate(peer, names) do
    for name <- names do
      assert {:ok, ^name} =
               Foreign.run(peer, """
               with {:ok, id} <- Snakepit.SharedMemory.allocate_region(4096, name: #{inspect(name)}),
                    {:ok, 2} <- Snakepit.SharedMemory.write(id, "of " <> id), do: {:ok, id}
               """)
    end
  end

  test "R2.3 R11.2 a killed writer's region is removed after the grace, and it is told",
       context do
    %{place: place, dir: dir, namespace: namespace} = context
    Listener.attach(self())
    janitor = start_janitor(place, grace: 50)
    peer = Foreign.start(idle(place))
    allocate(peer, ["left"])
    assert {:ok, "of left"} = SharedMemory.read("left", place)
    assert eventually(fn -> match?({:ok, %{watched: 1}}, Janitor.stats(janitor)) end)

    Foreign.kill(peer)
    os_pid = String.to_integer(peer.os_pid)
    ended = [:snakepit, :shared_memory, :cleanup, :process_ended]

    assert_receive {:event, ^ended, %{count: 1}, %{namespace: ^namespace, os_pid: ^os_pid}},
                   @patience

    swept = [:snakepit, :shared_memory, :cleanup, :swept]
    janitors = %{namespace: namespace, source: :janitor}

    report =
      receive do
        {:event, ^swept, %{removed: 1}, %{report: report} = metadata} ->
          assert Map.take(metadata, [:namespace, :source]) == janitors
          report
      after
        @patience -> flunk("nothing was removed")
      end

    assert [%{id: "left", reason: "its writer died", bytes: bytes}] = report.removed
    assert bytes > 4 * 4096
    assert TestDir.leftovers(dir) == []
    assert {:ok, %{deaths: 1, removed: 1, watched: 0}} = Janitor.stats(janitor)
  end

  test "within the grace the region stays for whoever takes it over", %{place: place, dir: dir} do
    janitor = start_janitor(place, grace: 3_600_000, cleanup_interval: 10)
    peer = Foreign.start(idle(place))
    allocate(peer, ["kept"])
    Foreign.kill(peer)

    {:ok, %{sweeps: before}} = Janitor.stats(janitor)

    assert eventually(fn ->
             match?({:ok, %{sweeps: n}} when n > before + 5, Janitor.stats(janitor))
           end)

    assert {:ok, "of kept"} = SharedMemory.read("kept", place)

    {:ok, region} = SharedMemory.map_region("kept", [access_mode: :read_write] ++ place)
    assert {:ok, 4} = SharedMemory.write(region, "of mine")
    assert {:ok, "of mine"} = SharedMemory.read("kept", place)
    SharedMemory.deallocate_region!("kept", place)
    assert TestDir.leftovers(dir) == []
  end

  test "mode: :simulation notices by the sweep alone", %{place: place, dir: dir} do
    settings = [mode: :simulation, cleanup_interval: 20, grace: 0]
    janitor = start_janitor(place, settings)
    peer = Foreign.start(idle(place))
    allocate(peer, ["left"])
    assert {:ok, %{watched: 0}} = Janitor.stats(janitor)
    Foreign.kill(peer)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
  end

  test "R8.4 a removal is in the log, corruption too, and only once, with what to do", %{
    place: place,
    dir: dir
  } do
    peer = Foreign.start(idle(place))
    allocate(peer, ["left", "broken"])
    broken = file_of("broken", place)
    Foreign.kill(peer)
    File.write!(broken, :binary.copy("garbage!", 1000))

    log =
      capture_log([level: :info], fn ->
        Logger.configure(level: :info)
        janitor = start_janitor(place, grace: 0, cleanup_interval: 5)

        assert eventually(fn ->
                 match?({:ok, %{removed: 1, sweeps: n}} when n > 10, Janitor.stats(janitor))
               end)

        Logger.configure(level: :warning)
      end)

    assert log =~ ~r/removed from .*: left \(its writer died\)/
    assert [_once] = Regex.scan(~r/corrupted in .*: broken \(/, log)
    assert log =~ "cleanup_regions(corrupted: true)"

    assert {:ok, report} = SharedMemory.cleanup_regions([corrupted: true] ++ place)
    assert [%{id: "broken"}] = report.removed
    assert TestDir.leftovers(dir) == []
  end

  test "readers that were killed are no longer counted", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "x", place)
    start_janitor(place, grace: 0)
    count = fn -> SharedMemory.get_region_info!(id, place).reader_count end
    peers = for _ <- 1..2, do: Foreign.start(idle(place))

    for peer <- peers do
      code =
        "for _ <- 1..5, do: {:ok, %{}} = Snakepit.SharedMemory.map_region(#{inspect(id)}); :ok"

      assert Foreign.run(peer, code) == :ok
    end

    assert count.() == 10
    [one, two] = peers
    Foreign.kill(one)
    assert eventually(fn -> count.() == 5 end)
    Foreign.kill(two)
    assert eventually(fn -> count.() == 0 end)
    # They never were in the way.
    assert {:ok, 4} = SharedMemory.write(id, "y", place)
  end

  test "two VMs on one namespace leave one another's regions alone", %{place: place, dir: dir} do
    eager = [cleanup_interval: 5, grace: 0] ++ place
    one = Foreign.start(eager)
    two = Foreign.start(eager)
    allocate(one, ["one-a", "one-b"])
    allocate(two, ["two-a", "two-b"])
    all = ["one-a", "one-b", "two-a", "two-b"]

    for peer <- [one, two] do
      assert {:ok, %{removed: [], kept: kept}} =
               Foreign.run(
                 peer,
                 "Snakepit.SharedMemory.cleanup_regions(grace: 0, corrupted: true)"
               )

      assert kept |> Enum.map(& &1.id) |> Enum.sort() == all

      # Many of its own sweeps, none of which removes anything.
      assert {:ok, %{removed: 0}} =
               Foreign.run(peer, """
               wait = fn wait ->
                 case Snakepit.SharedMemory.Janitor.stats() do
                   {:ok, %{sweeps: n}} = stats when n > 20 -> stats
                   _ -> Process.sleep(5); wait.(wait)
                 end
               end
               wait.(wait)
               """)
    end

    for id <- all, do: assert({:ok, "of " <> ^id} = SharedMemory.read(id, place))

    # One dies: its regions go, by the other's janitor; the other's stay.
    Foreign.kill(one)
    assert eventually(fn -> code(SharedMemory.read("one-b", place)) == :not_found end)
    assert eventually(fn -> length(SharedMemory.list_regions!(place)) == 2 end)
    for id <- ["two-a", "two-b"], do: assert({:ok, "of " <> ^id} = SharedMemory.read(id, place))
    Foreign.stop(two)
    assert File.ls!(dir) == []
  end

  test "R2.4 the start finds what a killed VM left, and nothing that a living one uses", %{
    place: place,
    dir: dir
  } do
    [dead, alive] = for _ <- 1..2, do: Foreign.start(idle(place))
    stale = for n <- 1..50, do: "stale-#{n}"
    allocate(dead, stale)
    allocate(alive, ["used"])
    broken = file_of("stale-1", place)
    Foreign.kill(dead)
    File.write!(broken, "no header at all")
    assert length(SharedMemory.list_regions!(place)) == 50

    later = Foreign.start([grace: 0] ++ place)

    assert eventually(fn ->
             for(%{id: "stale" <> _ = id} <- SharedMemory.list_regions!(place), do: id) == []
           end)

    assert {:ok, "of used"} = SharedMemory.read("used", place)
    # What nobody can make sense of is left to a person.
    assert %{corrupted: [%{id: "stale-1"}]} = SharedMemory.cleanup_regions!(place)

    assert %{removed: [%{id: "stale-1"}]} =
             SharedMemory.cleanup_regions!([corrupted: true] ++ place)

    Foreign.stop(later)
    Foreign.stop(alive)
    assert File.ls!(dir) == []
  end

  test "killed, it is started again and works; its thread ends", %{place: place, dir: dir} do
    with_config([grace: 0] ++ place, fn ->
      old = Process.whereis(Janitor)
      assert eventually(fn -> match?({:ok, _}, Janitor.stats()) end)
      capture_log(fn -> kill(old) end)

      assert eventually(fn -> Process.whereis(Janitor) not in [nil, old] end)
      assert eventually(fn -> match?({:ok, _}, Janitor.stats()) end)
      assert eventually(fn -> threads("shm-reaper") == 1 end)

      peer = Foreign.start(idle(place))
      allocate(peer, ["left"])
      Foreign.kill(peer)
      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end)

    assert eventually(fn -> threads("shm-reaper") == 1 end)
    # What it does not know does it no harm.
    capture_log(fn ->
      send(Janitor, :nonsense)
      GenServer.cast(Janitor, {:non, "sense"})
      assert {:error, :unexpected} = GenServer.call(Janitor, :nonsense)
    end)

    assert {:ok, _} = Janitor.stats()
  end

  test "R11.5 one that cannot work says so, and the application runs", %{
    place: place,
    namespace: namespace
  } do
    Listener.attach(self())
    {:ok, config} = Config.new(place)

    log =
      capture_log(fn ->
        janitor = start_supervised!({Janitor, {%{config | dir: "/no/such/dir"}, []}})
        assert Janitor.stats(janitor) == :not_running
        assert :ok = Janitor.sweep_now(janitor)
      end)

    failed = [:snakepit, :shared_memory, :cleanup, :failed]
    assert_receive {:event, ^failed, %{count: 1}, %{namespace: ^namespace, reason: reason}}
    assert is_binary(reason)
    assert log =~ "cleanup of #{namespace} failed"
    assert log =~ "remedy: check the directory /no/such/dir"

    # One that is asked for says the same to who asks.
    assert {:error, %Error{operation: :cleanup_regions} = error} =
             SharedMemory.cleanup_regions(namespace: namespace, dir: "/no/such/dir")

    assert error.message =~ "No such file or directory"
    assert is_binary(error.remedy)
  end
end
