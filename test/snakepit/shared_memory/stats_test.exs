defmodule Snakepit.SharedMemory.StatsTest do
  # Counts of the whole VM: nobody else may be working.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Histogram, Recorder, ReferenceCounter, Registry}
  alias Snakepit.SharedMemory.{SecurityController, Stats}

  setup do
    SharedMemory.reset_stats!()
    :ok
  end

  defp operation(name), do: Map.fetch!(SharedMemory.stats!().operations, name)

  test "R7.4 aggregate statistics add up", %{place: place} do
    before = SharedMemory.stats!()
    assert before.total_allocations == 0
    ids = for _ <- 1..5, do: SharedMemory.allocate_region!(8192, [slots: 2] ++ place)
    handle = SharedMemory.share!(:binary.copy("s", 100), place)
    for id <- ids, do: SharedMemory.write!(id, "1234", place)
    for id <- ids, do: "1234" = SharedMemory.read!(id, place)

    stats = SharedMemory.stats!()
    assert stats.total_allocations == 6
    assert stats.total_deallocations == 0
    assert stats.active_regions == before.active_regions + 6
    assert stats.total_memory_allocated == before.total_memory_allocated + 5 * 16_384 + 4096
    assert stats.bytes_read == 20
    # Five writes, and that of share.
    assert stats.bytes_written == 120
    assert stats.operations.write.count == 6
    assert stats.operations.read.count == 5
    assert %{count: 1, bytes: 100} = stats.operations.share

    grown = fn key -> stats.fragmentation[key] - before.fragmentation[key] end
    assert grown.(:reserved_bytes) == 5 * 16_384 + 4096
    assert grown.(:capacity_bytes) == 5 * 8192 + 4096
    assert grown.(:value_bytes) == 120
    assert stats.fragmentation.unused > 0.0 and stats.fragmentation.unused <= 1.0

    [one | others] = ids
    SharedMemory.deallocate_region!(one, place)
    SharedMemory.deallocate_region!(handle, place)
    assert %{total_deallocations: 2} = SharedMemory.stats!()
    for id <- others, do: SharedMemory.deallocate_region!(id, place)
    assert %{total_deallocations: 6, active_regions: left} = SharedMemory.stats!()
    assert left == before.active_regions
  end

  test "regions that go with their owner are deallocated as well", %{place: place, dir: dir} do
    {_, owner} =
      in_process(fn -> for _ <- 1..3, do: SharedMemory.allocate_region!(4096, place) end)

    kill(owner)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    assert %{total_allocations: 3, total_deallocations: 3} = stats = SharedMemory.stats!()
    assert stats.cleanup.owner_down >= 1
  end

  test "R9.1 allocation, mapping and access are timed", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    region = SharedMemory.map_region!(id, place)
    for _ <- 1..2000, do: SharedMemory.write!(region, "x")
    for _ <- 1..2000, do: SharedMemory.read!(region)
    SharedMemory.cleanup_regions!([pattern: "none"] ++ place)
    stats = SharedMemory.stats!()

    for summary <- [stats.allocation_times, stats.mapping_times, stats.cleanup_times] do
      assert %{count: 1, samples: 1} = summary
      assert summary.p50 > 0 and summary.max >= summary.p999
    end

    for name <- [:read, :write] do
      assert %{count: 2000, samples: samples} = summary = stats.operations[name]
      # One in 128 of each scheduler.
      assert samples >= 15 and samples <= 2000
      assert summary.p50 > 0
      assert summary.p50 <= summary.p90 and summary.p90 <= summary.p99
      assert summary.p99 <= summary.p999 and summary.p999 <= summary.max
    end
  end

  test "a duration is where it belongs" do
    us = System.convert_time_unit(250, :microsecond, :native)
    for _ <- 1..99, do: Recorder.record(:map, us, {:ok, nil}, nil)
    Recorder.record(:map, us * 1000, {:ok, nil}, nil)
    summary = SharedMemory.stats!().mapping_times
    assert %{count: 100, samples: 100} = summary
    assert_in_delta summary.p50, 250, 250 * 0.032
    assert_in_delta summary.p99, 250, 250 * 0.032
    assert_in_delta summary.max, 250_000, 250_000 * 0.063
  end

  test "errors are counted by code, for each operation and in all", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    for _ <- 1..3, do: :empty = code(SharedMemory.read(id, place))
    :not_found = code(SharedMemory.read("nobody", place))
    :not_found = code(SharedMemory.write("nobody", "x", place))
    :not_sealed = code(SharedMemory.binary(id, place))
    :invalid_option = code(SharedMemory.allocate_region(4096, nonsense: 1))
    :invalid_handle = code(SharedMemory.fetch(%{}))
    stats = SharedMemory.stats!()
    assert stats.operations.read.errors == %{empty: 3, not_found: 1}
    assert stats.operations.write.errors == %{not_found: 1}
    assert stats.operations.allocate.errors == %{invalid_option: 1}

    assert stats.error_counts == %{
             empty: 3,
             not_found: 2,
             not_sealed: 1,
             invalid_option: 1,
             invalid_handle: 1
           }

    assert stats.operations.read.count == 0
  end

  test "what raises is counted as an exception" do
    assert_raise RuntimeError, fn ->
      Snakepit.SharedMemory.Telemetry.span(:map, "r", fn -> raise "no" end)
    end

    assert operation(:map).errors == %{exception: 1}
  end

  test "counts are exact when many count at once", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "1234", place)
    SharedMemory.reset_stats!()

    1..50
    |> Enum.map(fn _ ->
      Task.async(fn ->
        for _ <- 1..100 do
          SharedMemory.read!(id, place)
          SharedMemory.read("nobody", place)
          Recorder.record(:seal, 1, {:ok, 2}, nil)
        end
      end)
    end)
    |> Task.await_many(60_000)

    stats = SharedMemory.stats!()
    assert %{count: 5000, bytes: 20_000, errors: %{not_found: 5000}} = stats.operations.read
    assert %{count: 5000, samples: 5000} = stats.operations.seal
  end

  test "copies out of a handle are reads", %{place: place} do
    handle = SharedMemory.share!("0123456789", place)
    "0123456789" = SharedMemory.read!(handle, dir: place[:dir])
    "345" = SharedMemory.read!(handle, dir: place[:dir], offset: 3, length: 3)
    assert %{count: 2, bytes: 13} = operation(:read)
  end

  test "cleanup is counted", %{place: place} do
    report = %{removed: [%{}, %{}], corrupted: [%{}], recovered: [], cleared_readers: 4}
    Snakepit.SharedMemory.Telemetry.swept("ns", :call, report)
    Snakepit.SharedMemory.Telemetry.cleanup_failed("ns", "why")
    # Those find nothing, and are not counted.
    for _ <- 1..5, do: SharedMemory.cleanup_regions!(place)
    cleanup = SharedMemory.stats!().cleanup
    assert %{sweeps: 1, removed: 2, corrupted: 1, recovered: 0, cleared_readers: 4} = cleanup
    assert cleanup.failed >= 1
  end

  test "R9.1 errors of every operation are counted, of each by itself", %{place: place} do
    nobody = "nobody"

    calls = [
      get_region_info: fn -> SharedMemory.get_region_info(nobody, place) end,
      list_regions: fn -> SharedMemory.list_regions(place ++ [no: 1]) end,
      handle: fn -> SharedMemory.handle(nobody, place) end,
      history: fn -> SharedMemory.history(nobody, place) end,
      health_check: fn -> SharedMemory.health_check(no: 1) end,
      reconfigure: fn -> SharedMemory.reconfigure(no: 1) end,
      release_session: fn -> SharedMemory.release_session(nil) end,
      release_worker: fn -> SharedMemory.release_worker(nil) end,
      lend_region: fn -> SharedMemory.lend_region(nobody, place) end,
      take_back_region: fn -> SharedMemory.take_back_region(nobody, place) end,
      set_active: fn -> SharedMemory.set_active(make_ref(), true) end,
      unsubscribe: fn -> SharedMemory.unsubscribe(:no) end,
      increment: fn -> ReferenceCounter.increment(nobody, self(), place) end,
      decrement: fn -> ReferenceCounter.decrement(nobody, self(), place) end,
      get_count: fn -> ReferenceCounter.get_count(nobody, place) end,
      get_references: fn -> ReferenceCounter.get_references(nobody, place) end,
      validate_access: fn -> SecurityController.validate_access(nobody, self(), :read) end,
      apply_security_policy: fn ->
        SecurityController.apply_security_policy(nobody, "x", :high)
      end,
      secure_cleanup: fn -> SecurityController.secure_cleanup(nobody, "x", :high) end,
      cleanup: fn -> SharedMemory.cleanup_regions(no: 1) end,
      allocate: fn -> SharedMemory.allocate_region(1, place) end,
      adopt: fn -> SharedMemory.adopt_region(nobody, place) end,
      map: fn -> SharedMemory.map_region(nobody, place) end,
      unmap: fn -> SharedMemory.unmap_region(nobody, place) end,
      deallocate: fn -> SharedMemory.deallocate_region(nobody, place) end,
      write: fn -> SharedMemory.write(nobody, "x", place) end,
      read: fn -> SharedMemory.read(nobody, place) end,
      seal: fn -> SharedMemory.seal(nobody, place) end,
      binary: fn -> SharedMemory.binary(nobody, place) end,
      share: fn -> SharedMemory.share("", place) end,
      fetch: fn -> SharedMemory.fetch(nil, place) end,
      subscribe: fn -> SharedMemory.subscribe(nobody, place) end,
      with_writer: fn -> SharedMemory.with_writer(nobody, [timeout: 0] ++ place, & &1) end
    ]

    for {name, call} <- calls do
      SharedMemory.reset_stats!()
      code = code(call.())
      assert is_atom(code)
      stats = SharedMemory.stats!()
      assert stats.error_counts == %{code => 1}, "#{name}"
      assert stats.operations[name].errors == %{code => 1}
    end

    # None was left out.
    assert SharedMemory.stats!().operations |> Map.keys() |> Enum.sort() ==
             calls |> Keyword.keys() |> Enum.sort()
  end

  test "calls that are not timed are counted", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.reset_stats!()
    for _ <- 1..3, do: SharedMemory.get_region_info!(id, place)
    assert %{count: 3, samples: 0, errors: %{}} = operation(:get_region_info)
  end

  test "a reset replaces no persistent term, and nothing stays of them when the application ends" do
    terms = fn -> :persistent_term.get() |> Enum.map(&elem(&1, 0)) |> MapSet.new() end

    ours = fn ->
      Enum.filter(terms.(), &(inspect(&1) =~ ~r/snakepit_shm|SharedMemory\.Config/))
    end

    before = Map.new(:persistent_term.get())
    SharedMemory.reset_stats!()
    assert Map.new(:persistent_term.get()) == before
    assert ours.() != []
    :ok = Application.stop(:snakepit_shared_memory)
    left = ours.()
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    assert left == []
  end

  test "a reset answers what was, and starts from zero", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "x", place)
    SharedMemory.read!(id, place)
    :empty = code(SharedMemory.read(SharedMemory.allocate_region!(4096, place), place))

    assert {:ok, %Stats{total_allocations: 2, bytes_read: 1} = before} =
             SharedMemory.reset_stats()

    stats = SharedMemory.stats!()
    assert stats.total_allocations == 0 and stats.bytes_read == 0 and stats.bytes_written == 0
    assert stats.error_counts == %{}
    assert DateTime.compare(stats.since, before.last_updated) in [:gt, :eq]

    for {_name, summary} <- stats.operations do
      assert %{count: 0, samples: 0, p50: nil, max: nil, bytes: 0} = summary
    end

    # What there is, is not what was done.
    assert stats.active_regions == before.active_regions
    # Those of a region go on.
    assert %{reads: 1, writes: 1} = SharedMemory.get_region_info!(id, place)
  end

  test "a crash of the registry loses no count", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "x", place)
    registry = Process.whereis(Registry)

    capture_log(fn ->
      kill(registry)
      assert eventually(fn -> Process.whereis(Registry) not in [nil, registry] end)
    end)

    SharedMemory.read!(id, place)
    assert %{total_allocations: 1, operations: %{read: %{count: 1}}} = SharedMemory.stats!()
    assert %{reads: 1, writes: 1} = SharedMemory.get_region_info!(id, place)
  end

  test "performance_monitoring: false counts nothing, and says so", %{place: place} do
    with_config([performance_monitoring: false], fn ->
      id = SharedMemory.allocate_region!(4096, place)
      SharedMemory.write!(id, "x", place)
      "x" = SharedMemory.read!(id, place)
      assert {:error, error} = SharedMemory.stats()
      assert %{code: :disabled, operation: :stats} = error
      assert error.remedy =~ "performance_monitoring: true"
      assert code(SharedMemory.reset_stats()) == :disabled
      assert code(SharedMemory.recommendations()) == :disabled
      assert %{reads: nil, access_count: nil} = SharedMemory.get_region_info!(id, place)
      assert_raise Error, fn -> SharedMemory.stats!() end
      # History is not statistics.
      assert [%{operation: :allocate}] = SharedMemory.history!(id, place)
      # What was done unseen is not there when counting begins.
      Recorder.setup(true)
      assert %{operations: %{read: %{count: 0}}, total_allocations: 0} = SharedMemory.stats!()
      assert %{reads: 0, writes: 0} = SharedMemory.get_region_info!(id, place)
    end)
  end

  test "asked while the application starts and stops, each answers or says why", %{place: place} do
    test = self()

    asking =
      for _ <- 1..2 do
        spawn_link(fn ->
          ask = fn ask, codes ->
            answers = [
              SharedMemory.stats(),
              SharedMemory.reset_stats(),
              SharedMemory.history("nobody", place),
              SharedMemory.recommendations()
            ]

            codes = Enum.reduce(answers, codes, &MapSet.put(&2, kind(&1)))

            receive do
              :stop -> send(test, {:asked, codes})
            after
              0 -> ask.(ask, codes)
            end
          end

          ask.(ask, MapSet.new())
        end)
      end

    capture_log(fn ->
      for _ <- 1..10 do
        :ok = Application.stop(:snakepit_shared_memory)
        {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
      end
    end)

    for pid <- asking do
      send(pid, :stop)
      assert_receive {:asked, codes}, 30_000
      assert MapSet.subset?(codes, MapSet.new([:ok, :not_started, :not_found]))
      assert :ok in codes and :not_started in codes
    end
  end

  defp kind({:ok, _value}), do: :ok
  defp kind(error), do: code(error)

  test "made of nothing, nothing comes" do
    calls = %{count: 0, bytes: 0, errors: %{}, times: List.duplicate(0, Histogram.buckets())}
    names = [:allocate, :map, :cleanup, :read, :write]
    now = DateTime.utc_now()

    recorded = %{
      since: now,
      operations: Map.new(names, &{&1, calls}),
      events: %{allocated: 0, deallocated: 0, events_dropped: 0, sweeps: 0}
    }

    stats = Stats.of(recorded, [], %{}, now)

    assert stats.fragmentation == %{
             reserved_bytes: 0,
             capacity_bytes: 0,
             value_bytes: 0,
             unused: 0.0
           }

    assert stats.cleanup == %{sweeps: 0}
    assert stats.active_regions == 0
  end
end
