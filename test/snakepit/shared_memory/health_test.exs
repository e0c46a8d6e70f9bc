defmodule Snakepit.SharedMemory.HealthTest do
  # Each promise is broken by itself, and the check that is meant to notice does. Alone: some are
  # broken for the whole VM, and nobody else may come and go while the others are looked at.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{
    Config,
    Health,
    Janitor,
    Listener,
    Listing,
    Registry,
    Table,
    Target
  }

  alias Snakepit.SharedMemory.Health.{Monitor, Processes, Resources, Segments}

  @patience 30_000

  defp findings(place, check) do
    report = SharedMemory.health_check!([timeout: @patience] ++ place)
    for finding <- report.findings, finding.check == check, do: finding
  end

  defp sound?(finding) do
    assert %{check: _, severity: severity, message: message, evidence: %{}, remedy: remedy} =
             finding

    assert severity in [:warning, :critical]
    assert is_binary(message) and is_binary(remedy)
    true
  end

  defp key(id, place), do: {place[:dir], place[:namespace], id}
  defp place_of(place), do: struct!(Target, [id: "", key: ""] ++ place)
  defp listed(place), do: Listing.list(place_of(place))

  defp orphans(place, config) do
    Segments.orphans(Registry.audit(@patience), Listing.list(place), place, config)
  end

  defp config(settings \\ []) do
    {:ok, config} = Config.new(settings)
    config
  end

  test "R13.4 all is well: ok, by every check", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.map_region!(id, place)
    SharedMemory.share!("sealed", place)
    assert {:ok, report} = SharedMemory.health_check([timeout: @patience] ++ place)
    assert %{status: :ok, findings: [], checked_at: %DateTime{}, duration_us: us} = report
    assert is_integer(us) and us >= 0

    assert Health.checks() ==
             ~w(processes reaper events bookkeeping segments orphans limits space guard)a
  end

  test "bad options" do
    assert code(SharedMemory.health_check(timeout: 0)) == :invalid_option
    assert code(SharedMemory.health_check(:all)) == :invalid_option
    assert {:error, error} = SharedMemory.health_check(namespce: "x")
    assert error.message =~ "did you mean :namespace?"
  end

  test "switched off, and not started" do
    with_config([enabled: false], fn -> assert code(SharedMemory.health_check()) == :disabled end)
    before = Application.get_env(:snakepit, :shared_memory)
    capture_log(fn -> :ok = Application.stop(:snakepit_shared_memory) end)
    assert code(SharedMemory.health_check()) == :not_started
    restart(before)
  end

  describe "R13.4 bookkeeping" do
    test "a count that no mapping stands for", %{place: place} do
      :ets.insert(:snakepit_shm_counts, {"nobody", 3})
      assert [finding] = findings(place, :bookkeeping)
      assert sound?(finding) and finding.severity == :critical
      assert finding.evidence == %{only_first: [], only_second: [{"nobody", 3}]}
      :ets.delete(:snakepit_shm_counts, "nobody")
      assert findings(place, :bookkeeping) == []
    end

    test "a record without a writer, and a region that is not counted", %{place: place} do
      id = SharedMemory.allocate_region!(4096, place)
      {:ok, record} = Table.record(key(id, place))
      Table.put_record(%{record | target: %{record.target | key: "stray"}})
      found = findings(place, :bookkeeping)
      assert Enum.all?(found, &(sound?(&1) and &1.severity == :critical))
      messages = Enum.map(found, & &1.message)
      assert Enum.any?(messages, &(&1 =~ "regions with a record"))
      assert Enum.any?(messages, &(&1 =~ "owners and the processes"))
      assert "the tables hold 2 regions, the registry counts 1" in messages
      assert Enum.any?(messages, &(&1 =~ ~r/tables hold 32768 bytes, .* counts 16384/))
      Table.take("stray")
      assert findings(place, :bookkeeping) == []
    end

    test "a mapping that nobody is watched for", %{place: place} do
      id = SharedMemory.allocate_region!(4096, place)
      region = SharedMemory.map_region!(id, place)
      ref = make_ref()
      Table.put_mapping({ref, key(id, place), self(), region.reader, nil, nil})
      assert [finding] = findings(place, :bookkeeping)
      assert finding.message =~ "mappings and the processes"
      assert finding.evidence.only_first == [{self(), ref, key(id, place)}]
      Table.take_mapping(ref)
      assert findings(place, :bookkeeping) == []
    end
  end

  describe "R13.4 what is kept for nobody" do
    defp dead do
      {pid, monitor} = spawn_monitor(fn -> :ok end)
      receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> pid)
    end

    test "a right to write of a process that has ended", %{place: place} do
      row = {"key", dead(), make_ref(), nil, :held}
      :ets.insert(:snakepit_shm_writers, row)
      assert [finding] = findings(place, :bookkeeping)
      assert sound?(finding) and finding.severity == :critical
      assert finding.message == "rights to write of processes that have ended"
      assert finding.evidence == %{rows: [row]}
      :ets.delete(:snakepit_shm_writers, "key")
      assert findings(place, :bookkeeping) == []
    end

    test "a reference of a process that has ended, to a region that is not there", %{place: place} do
      {pid, token} = {dead(), make_ref()}
      Table.add_reference(%{target: %{key: "key"}, token: nil}, pid, pid, token)
      messages = place |> findings(:bookkeeping) |> Enum.map(& &1.message)
      assert "references of processes that have ended" in messages
      assert "references to regions that are gone" in messages
      Table.take_reference("key", pid)
      assert findings(place, :bookkeeping) == []
    end

    test "a mapping of a process that has ended", %{place: place} do
      id = SharedMemory.allocate_region!(4096, place)
      region = SharedMemory.map_region!(id, place)
      row = {ref, key, pid} = {make_ref(), key(id, place), dead()}
      # However many columns it has by now.
      like = :ets.lookup(:snakepit_shm_mappings, region.ref) |> hd() |> Tuple.to_list()
      :ets.insert(:snakepit_shm_mappings, List.to_tuple([ref, key, pid | Enum.drop(like, 3)]))
      found = findings(place, :bookkeeping)

      assert [finding] =
               Enum.filter(found, &(&1.message == "mappings of processes that have ended"))

      assert finding.evidence == %{rows: [row]}
      :ets.delete(:snakepit_shm_mappings, ref)
      assert findings(place, :bookkeeping) == []
    end

    test "processes that have only just ended are none", %{place: place} do
      for _ <- 1..20 do
        {_, holder} =
          in_process(fn ->
            id = SharedMemory.allocate_region!(4096, [slots: 1] ++ place)
            for _ <- 1..20, do: SharedMemory.map_region!(id, place)
            SharedMemory.ReferenceCounter.increment(id, self(), place)
          end)

        kill(holder)
        assert findings(place, :bookkeeping) == []
      end
    end
  end

  describe "R13.4 segments" do
    setup %{place: place} do
      id = SharedMemory.allocate_region!(4096, place)
      SharedMemory.write!(id, "value", place)
      {:ok, id: id}
    end

    test "a .meta that is gone", %{id: id, place: place, dir: dir} do
      meta = Path.join(dir, "#{place[:namespace]}_#{id}.meta")
      content = File.read!(meta)
      File.rm!(meta)
      assert [finding] = findings(place, :segments)
      assert sound?(finding) and finding.severity == :critical
      assert finding.evidence == %{code: :not_found, region: id}
      assert SharedMemory.health_check!(place).status == :critical
      File.write!(meta, content)
      File.chmod!(meta, 0o600)
      assert findings(place, :segments) == []
    end

    test "a damaged file", %{id: id, place: place} do
      file = file_of(id, place)
      File.open!(file, [:read, :write], &:file.pwrite(&1, 0, "garbage!"))
      assert [%{evidence: %{region: ^id, code: :corrupted}}] = findings(place, :segments)
    end

    test "a file that was cut", %{id: id, place: place} do
      File.write!(file_of(id, place), "")
      assert [%{evidence: %{region: ^id, code: code}}] = findings(place, :segments)
      assert code in [:truncated, :corrupted]
    end

    test "a writer that is not we", %{id: id, place: place} do
      {:ok, :ok} = Native.release(Table.writer(key(id, place)))
      assert [%{message: message, evidence: %{writer_pid: 0}}] = findings(place, :segments)
      assert message =~ "process 0 is its writer"
      SharedMemory.cleanup_regions!([grace: 0, pattern: id] ++ place)
      assert code(SharedMemory.deallocate_region(id, place)) == :closed
    end

    test "mapped here, and no reader there", %{id: id, place: place} do
      ref = make_ref()
      {:ok, %{token: token}} = Table.record(key(id, place))
      :ets.insert(:snakepit_shm_mappings, {ref, key(id, place), self(), nil, nil, token})
      assert [%{message: message, evidence: %{mappings: 1}}] = findings(place, :segments)
      assert message =~ "table of readers is empty"
      :ets.delete(:snakepit_shm_mappings, ref)
    end

    test "a mapping of an earlier region of the name is no finding", %{id: id, place: place} do
      region = SharedMemory.map_region!(id, place)
      SharedMemory.deallocate_region!(id, place)
      SharedMemory.allocate_region!(4096, [name: id] ++ place)
      assert SharedMemory.health_check!([timeout: @patience] ++ place).findings == []
      SharedMemory.unmap_region!(region)
    end

    test "a region that goes while it is looked at is no finding", %{id: id, place: place} do
      {:ok, audit} = Registry.audit(@patience)
      SharedMemory.deallocate_region!(id, place)
      assert Segments.check({:ok, audit}, listed(place), place_of(place)) == []
      # Nor is another of that name, whatever is wrong with it.
      SharedMemory.allocate_region!(4096, [name: id] ++ place)
      File.write!(file_of(id, place), "")
      assert Segments.check({:ok, audit}, listed(place), place_of(place)) == []
    end
  end

  describe "R13.4 orphans" do
    test "a region whose writer has gone, beyond its grace", %{place: place} do
      {:ok, writer} = Native.create(native(place, "left"))
      {:ok, :ok} = Native.release(writer)
      soon = config([grace: 0, cleanup_interval: 1] ++ place)
      left = fn -> orphans(place_of(place), soon) end
      # Within the grace it is nobody's fault.
      assert orphans(place_of(place), config([grace: 3_600_000] ++ place)) == []
      assert eventually(fn -> left.() != [] end)
      assert [finding] = left.()
      assert sound?(finding) and finding.severity == :warning
      assert [%{id: "left"}] = finding.evidence.regions
      assert finding.evidence.bytes > 4096
      SharedMemory.cleanup_regions!([grace: 0] ++ place)
      assert left.() == []
    end

    test "a corrupted region", %{place: place, dir: dir} do
      File.write!(Path.join(dir, "#{place[:namespace]}_broken.meta"), "no json at all")
      assert [finding] = findings(place, :orphans)
      assert sound?(finding) and finding.message == "1 regions are corrupted"
      assert [%{id: "broken"}] = finding.evidence.regions
      assert SharedMemory.health_check!(place).status == :degraded
      SharedMemory.cleanup_regions!([corrupted: true] ++ place)
      assert findings(place, :orphans) == []
    end

    test "a namespace that cannot be looked through" do
      nowhere = place_of(namespace: "x", dir: "/no/such/directory")
      assert [%{severity: :warning} = finding] = orphans(nowhere, config())
      assert sound?(finding)
    end
  end

  describe "R13.4 limits" do
    test "80 and 95 percent of the regions", %{place: place} do
      with_config([max_regions: 20], fn ->
        ids = for _ <- 1..15, do: SharedMemory.allocate_region!(4096, place)
        assert findings(place, :limits) == []
        more = for _ <- 1..1, do: SharedMemory.allocate_region!(4096, place)
        assert [%{severity: :warning} = finding] = findings(place, :limits)
        assert sound?(finding) and finding.message =~ "80 % of :max_regions is used: 16 of 20"
        assert finding.evidence == %{limit: :max_regions, used: 16, allowed: 20}
        all = ids ++ more ++ for _ <- 1..3, do: SharedMemory.allocate_region!(4096, place)
        assert [%{severity: :critical}] = findings(place, :limits)
        for id <- all, do: SharedMemory.deallocate_region!(id, place)
        assert findings(place, :limits) == []
      end)
    end

    test "of the bytes", %{place: place} do
      with_config([max_total_memory: 40_960], fn ->
        id = SharedMemory.allocate_region!(4096, [slots: 9] ++ place)
        assert [%{severity: :warning, message: message}] = findings(place, :limits)
        assert message =~ "90 % of :max_total_memory"
        SharedMemory.deallocate_region!(id, place)
      end)
    end
  end

  test "R13.4 space of the memory file system", %{dir: dir} do
    place = place_of(namespace: "x", dir: dir)
    assert {:ok, %{total: total, available: available}} = Native.space(dir)
    assert total > 0 and available in 0..total
    assert Resources.taken(place, 100, 21, 0) == []
    assert [%{severity: :warning} = finding] = Resources.taken(place, 100, 20, 7)
    assert sound?(finding) and finding.evidence == %{total: 100, available: 20, reserved: 7}
    assert [%{severity: :critical}] = Resources.taken(place, 100, 5, nil)
    # A directory without memory behind it, and one that is not there.
    assert Resources.taken(place, 0, 0, 0) == []
    nowhere = %{place | dir: "/no/such/directory"}

    assert [%{check: :space, severity: :critical}] =
             Resources.space(nowhere, {:error, :untouched})
  end

  test "R13.4 the guard is in front", %{place: place} do
    SharedMemory.allocate_region!(4096, place)
    assert Native.guard_state() == :in_front
    mapped = {:ok, %{live: ["one"]}}
    assert [%{severity: :critical} = covered] = Resources.guard(:covered, mapped)
    assert sound?(covered) and covered.message =~ "over the guard"
    assert [%{severity: :critical}] = Resources.guard(:not_installed, mapped)
    assert Resources.guard(:not_installed, {:ok, %{live: []}}) == []
  end

  describe "R13.4 processes" do
    setup do
      children = for id <- [:one, :two], do: Supervisor.child_spec({Agent, fn -> id end}, id: id)

      {:ok, supervisor} = Supervisor.start_link(children, strategy: :one_for_one, max_restarts: 0)

      on_exit(fn -> Process.exit(supervisor, :kill) end)

      pids =
        for {id, pid, _, _} <- Supervisor.which_children(supervisor), into: %{}, do: {id, pid}

      {:ok, supervisor: supervisor, pids: pids}
    end

    test "that are there and answer", %{supervisor: supervisor} do
      assert Processes.check(supervisor, 5_000) == []
    end

    test "one is suspended, one is busy, one is not running", context do
      %{supervisor: supervisor, pids: %{one: one, two: two}} = context
      :sys.suspend(one)
      assert [finding] = Processes.check(supervisor, 5_000)
      assert sound?(finding) and finding.message == ":one is suspended"
      assert %{process: :one, pid: ^one, queue: 0} = finding.evidence
      :sys.resume(one)

      Agent.cast(two, fn state -> receive do: (:go -> state) end)

      assert [%{message: ":two does not answer", severity: :critical}] =
               Processes.check(supervisor, 1_000)

      send(two, :go)

      :ok = Supervisor.terminate_child(supervisor, :two)
      assert [%{message: ":two is not running"}] = Processes.check(supervisor, 5_000)
    end

    test "the supervisor does not answer, or is not there", %{supervisor: supervisor} do
      :sys.suspend(supervisor)
      assert [%{message: ":supervisor does not answer" <> _}] = Processes.check(supervisor, 50)
      :sys.resume(supervisor)
      assert [%{severity: :critical}] = Processes.check(:nobody_is_called_this, 50)
      assert {:messages, []} = Process.info(self(), :messages)
    end

    test "ours: a suspended registry is found, and what rests on it is not passed off as well",
         %{place: place} do
      :sys.suspend(Registry)

      try do
        assert %{status: :critical, findings: found} =
                 SharedMemory.health_check!([timeout: 1_000] ++ place)

        assert Enum.any?(found, &(&1.message == "Snakepit.SharedMemory.Registry is suspended"))

        for check <- [:bookkeeping, :segments, :limits] do
          assert Enum.any?(found, &(&1.check == check and &1.message =~ "could not be checked"))
        end
      after
        :sys.resume(Registry)
      end

      assert %{status: :ok} = SharedMemory.health_check!([timeout: @patience] ++ place)
      assert {:messages, []} = Process.info(self(), :messages)
    end
  end

  test "R13.4 the reaper does not run", %{place: place, dir: dir} do
    assert Processes.reaper(Janitor, 5_000) == []
    elsewhere = Path.join(dir, "removed")
    File.mkdir!(elsewhere)
    nowhere = config(Keyword.put(place, :dir, elsewhere))
    File.rmdir!(elsewhere)

    capture_log(fn ->
      janitor = start_supervised!({Janitor, {nowhere, []}})
      assert [finding] = Processes.reaper(janitor, 5_000)
      assert sound?(finding) and finding.severity == :warning
      assert finding.message =~ "the reaper is not running"
      :sys.suspend(janitor)

      assert [%{message: "the reaper's process does not answer" <> _}] =
               Processes.reaper(janitor, 50)

      :sys.resume(janitor)
    end)

    assert [%{evidence: %{reason: :noproc}}] = Processes.reaper(:nobody_is_called_this, 50)
  end

  describe "the periodic check" do
    defp start_monitor(place, interval) do
      config = place |> config() |> Map.put(:health_check_interval, interval)
      start_supervised!({Monitor, {config, []}})
    end

    test "emits an event each time, and logs changes of status only", context do
      %{place: place, dir: dir, namespace: namespace} = context
      Listener.attach(self())
      event = [:snakepit, :shared_memory, :health, :checked]
      broken = Path.join(dir, "#{namespace}_broken.meta")

      next = fn status ->
        assert_receive {:event, ^event, measured,
                        %{namespace: ^namespace, status: ^status} = told},
                       @patience

        assert %{source: :monitor, report: %{status: ^status}} = told
        measured
      end

      log =
        capture_log([level: :info], fn ->
          Logger.configure(level: :info)
          start_monitor(place, 5)
          assert %{warnings: 0, critical: 0, duration: duration} = next.(:ok)
          assert is_integer(duration)
          File.write!(broken, "no json at all")
          for _ <- 1..5, do: assert(%{warnings: 1, critical: 0} = next.(:degraded))
          File.rm!(broken)
          for _ <- 1..5, do: next.(:ok)
          Logger.configure(level: :warning)
          stop_supervised!(Monitor)
        end)

      assert [_once] = Regex.scan(~r/health of #{namespace}: degraded/, log)
      assert [_once] = Regex.scan(~r/health of #{namespace}: ok again/, log)
      assert log =~ "1 regions are corrupted (remedy: call cleanup_regions(corrupted: true))"
    end

    test "without an interval: never; and from when it gets one", %{place: place} do
      Listener.attach(self())
      event = [:snakepit, :shared_memory, :health, :checked]
      monitor = start_monitor(place, nil)
      assert %Monitor{timer: nil} = :sys.get_state(monitor)
      Monitor.set_interval(monitor, 1)
      assert_receive {:event, ^event, _, %{source: :monitor}}, @patience
      Monitor.set_interval(monitor, nil)
      assert %Monitor{timer: nil} = :sys.get_state(monitor)
    end

    test "strangers", %{place: place} do
      monitor = start_monitor(place, nil)

      log =
        capture_log(fn ->
          send(monitor, :hello)
          send(monitor, {:timeout, make_ref(), :check})
          GenServer.cast(monitor, :what)
          assert {:error, :unexpected} = GenServer.call(monitor, :what)
        end)

      assert log =~ "unexpected"
      assert Process.alive?(monitor)
    end
  end

  test "a call is an event as well", %{place: place, namespace: namespace} do
    Listener.attach(self())
    SharedMemory.health_check!(place)
    event = [:snakepit, :shared_memory, :health, :checked]
    assert_receive {:event, ^event, _, %{source: :call, namespace: ^namespace, status: :ok}}
  end
end
