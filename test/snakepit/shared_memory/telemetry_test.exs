defmodule Snakepit.SharedMemory.TelemetryTest do
  # Changes whether the whole VM emits events.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Bridge, Config, Listener, ReferenceCounter, Telemetry}

  @table Telemetry |> Code.fetch_docs() |> elem(4) |> Map.fetch!("en")

  setup do
    Listener.attach(self())
    assert Telemetry.enabled?()
    :ok
  end

  defp assert_span(operation, region, result, bytes \\ nil) do
    start = [:snakepit, :shared_memory, :region, operation, :start]
    stop = [:snakepit, :shared_memory, :region, operation, :stop]
    assert_receive {:event, ^start, %{system_time: _, monotonic_time: _}, %{region: ^region}}
    assert_receive {:event, ^stop, measurements, %{region: ^region, result: ^result}}
    assert %{duration: duration, monotonic_time: _} = measurements
    assert is_integer(duration) and duration >= 0
    assert measurements[:bytes] == bytes
  end

  test "every operation is a span, with the bytes that moved", %{place: place} do
    dir = [dir: place[:dir]]
    {:ok, "r"} = SharedMemory.allocate_region(4096, [name: "r"] ++ place)
    assert_span(:allocate, nil, :ok)
    {:ok, region} = SharedMemory.map_region("r", place)
    assert_span(:map, "r", :ok)
    {:ok, 2} = SharedMemory.write(region, ["123", [?4]])
    assert_span(:write, "r", :ok, 4)
    {:ok, "1234"} = SharedMemory.read("r", place)
    assert_span(:read, "r", :ok, 4)
    {:ok, _ref} = SharedMemory.subscribe(region)
    assert_span(:subscribe, "r", :ok)
    {:ok, 2} = SharedMemory.seal(region)
    assert_span(:seal, "r", :ok)
    {:ok, "1234"} = SharedMemory.binary(region)
    assert_span(:binary, "r", :ok, 4)
    {:ok, "r"} = SharedMemory.unmap_region(region)
    assert_span(:unmap, "r", :ok)
    {:ok, "r"} = SharedMemory.deallocate_region("r", place)
    assert_span(:deallocate, "r", :ok)

    {:error, _} = SharedMemory.adopt_region("r", place)
    assert_span(:adopt, "r", :not_found)

    {:ok, handle} = SharedMemory.share("shared", [name: "s"] ++ place)
    assert_span(:share, nil, :ok, 6)
    {:ok, "shared"} = SharedMemory.fetch(handle, dir)
    assert_span(:fetch, "s", :ok, 6)
  end

  test "an error is a result", %{place: place} do
    {:error, _} = SharedMemory.read("nobody", place)
    assert_span(:read, "nobody", :not_found)
    {:error, _} = SharedMemory.write("nobody", "x", place)
    assert_span(:write, "nobody", :not_found)
    {:error, _} = SharedMemory.fetch(nil)
    assert_span(:fetch, nil, :invalid_handle)
  end

  test "what raises ends its span with an exception" do
    assert_raise RuntimeError, fn -> Telemetry.span(:read, "r", fn -> raise "no" end) end
    event = [:snakepit, :shared_memory, :region, :read, :exception]
    assert_receive {:event, ^event, %{duration: _}, metadata}
    assert %{kind: :error, reason: %RuntimeError{}, stacktrace: [_ | _], region: "r"} = metadata
  end

  test "an owner's death is told, with what it held", %{place: place} do
    {_, owner} =
      in_process(fn ->
        id = SharedMemory.allocate_region!(4096, place)
        for _ <- 1..3, do: SharedMemory.map_region!(id, place)
        SharedMemory.share!("x", place)
      end)

    kill(owner)
    event = [:snakepit, :shared_memory, :cleanup, :owner_down]
    assert_receive {:event, ^event, %{regions: 2, mappings: 3}, %{pid: ^owner}}, 10_000
  end

  test "the documented table names every event, and no other" do
    documented =
      for [_, name] <- Regex.scan(~r/^\| `\[(:\w+, :\w+)(?:, _)?\]` \|/m, @table) do
        name |> String.split(", ") |> Enum.map(&String.to_atom(String.trim_leading(&1, ":")))
      end

    emitted = for [:snakepit, :shared_memory | rest] <- Telemetry.events(), do: Enum.take(rest, 2)
    assert Enum.sort(Enum.uniq(emitted)) == Enum.sort(Enum.uniq(documented))
  end

  # The rows of the second table: what an event carries, by its last part or its whole name.
  defp documented_keys do
    for [_, name, measurements, metadata] <-
          Regex.scan(~r/^\| `\[?([:\w, ]+)\]?` \| (`\w+`.*?) \| (.*`\w+`.*?) \|$/m, @table),
        into: %{} do
      {name, {keys(measurements), keys(metadata)}}
    end
  end

  defp keys(cell) do
    for [_, key] <- Regex.scan(~r/(?<![:\w])`(\w+)`/, cell), do: String.to_existing_atom(key)
  end

  defp row([:snakepit, :shared_memory, :region, _operation, step]), do: inspect(step)
  defp row([:snakepit, :shared_memory, :limit, _]), do: ":limit, _"
  defp row([:snakepit, :shared_memory | rest]), do: Enum.map_join(rest, ", ", &inspect/1)

  defp received(events) do
    receive do
      {:event, name, measurements, metadata} ->
        received([{name, Map.keys(measurements), Map.keys(metadata)} | events])
    after
      0 -> events
    end
  end

  # Every operation, once well and once not, and everything that is cleaned up.
  defp run_everything(place) do
    dir = [dir: place[:dir]]
    {:ok, writer} = Native.create(native(place, "given-up"))
    {:ok, :ok} = Native.release(writer)
    SharedMemory.deallocate_region!(SharedMemory.adopt_region!("given-up", place), place)
    id = SharedMemory.allocate_region!(4096, place)
    region = SharedMemory.map_region!(id, place)
    SharedMemory.write!(region, "x")
    SharedMemory.read!(region)
    SharedMemory.unsubscribe!(SharedMemory.subscribe!(region))
    SharedMemory.with_writer!(region, fn _held -> :written end)
    SharedMemory.seal!(region)
    SharedMemory.binary!(region)
    SharedMemory.unmap_region!(region)
    SharedMemory.deallocate_region!(id, place)
    handle = SharedMemory.share!("x", place)
    SharedMemory.fetch!(handle, dir)
    SharedMemory.deallocate_region!(handle, dir)
    SharedMemory.cleanup_regions!(place)

    for operation <- Telemetry.operations() do
      catch_throw(Telemetry.span(operation, id, fn -> throw(:no) end))
    end

    {_, owner} = in_process(fn -> SharedMemory.allocate_region!(4096, place) end)
    kill(owner)
    assert_receive {:event, [_, _, :cleanup, :owner_down], _, _} = down, 10_000
    send(self(), down)
    Telemetry.process_ended("ns", 1, "name")
    Telemetry.cleanup_failed("ns", "reason")
    SharedMemory.health_check!(place)
    run_limits(place)
    run_bridge(place)
  end

  defmodule Via do
    def execute(_command, _args, _opts), do: {:ok, nil}
  end

  defp run_bridge(place) do
    place = Keyword.put(place, :dir, "/no/such/directory")
    args = %{text: String.duplicate("x", 100)}
    {:ok, nil} = Bridge.execute("tool", args, [via: Via, threshold: 10] ++ place)
  end

  defp run_limits(place) do
    before = Config.load() |> elem(1) |> Map.take([:max_regions_per_process, :reference_grace])
    SharedMemory.reconfigure!(max_regions_per_process: 1, reference_grace: 0)
    id = SharedMemory.allocate_region!(4096, [session: "over"] ++ place)
    assert code(SharedMemory.allocate_region(4096, place)) == :resource_exhausted
    assert SharedMemory.release_session!("over").removed == [id]

    policy = [cleanup_policy: :reference_counted]
    id = SharedMemory.allocate_region!(4096, policy ++ place)
    {:ok, 0} = ReferenceCounter.decrement(id, self(), place)
    assert_receive {:event, [_, _, :cleanup, :expired], _, _} = expired, 10_000
    send(self(), expired)
    SharedMemory.reconfigure!(before)
  end

  test "R10.3 running everything emits every documented event, with what the table says", %{
    place: place
  } do
    run_everything(place)
    emitted = received([])
    names = emitted |> Enum.map(&elem(&1, 0)) |> Enum.uniq()
    assert Enum.sort(names) == Enum.sort(Telemetry.events())

    documented = documented_keys()

    for {name, measurements, metadata} <- emitted do
      assert {all_measurements, all_metadata} = documented[row(name)], "no row for #{row(name)}"
      assert measurements -- all_measurements == [], "#{row(name)} measures more"
      assert metadata -- all_metadata == [], "#{row(name)} says more"
      # All but the bytes are always there.
      assert (all_measurements -- measurements) in [[], [:bytes]], "#{row(name)} measures less"
      assert all_metadata -- metadata == [], "#{row(name)} says less"
    end
  end

  test "durations are in native units", %{place: place} do
    before = System.monotonic_time()
    id = SharedMemory.allocate_region!(4096, place)
    between = System.monotonic_time() - before
    event = [:snakepit, :shared_memory, :region, :allocate, :stop]
    assert_receive {:event, ^event, %{duration: duration, monotonic_time: ended}, _}
    assert duration > 0 and duration <= between
    assert ended >= before and ended <= before + between
    SharedMemory.deallocate_region!(id, place)
  end

  test "an event of a family is emitted; one that nobody declared is a mistake" do
    assert Telemetry.emit(:limit, :reached, %{count: 1}, %{limit: :max_regions}) == :ok
    event = [:snakepit, :shared_memory, :limit, :reached]
    assert_receive {:event, ^event, %{count: 1}, %{limit: :max_regions}}

    for {family, name} <- [{:limit, :nonsense}, {:nonsense, :reached}] do
      assert_raise FunctionClauseError, fn -> Telemetry.emit(family, name, %{}, %{}) end
    end
  end

  test "R10.3 telemetry_enabled: false switches events off, true on", %{place: place} do
    with_config([telemetry_enabled: false], fn ->
      refute Telemetry.enabled?()
      id = SharedMemory.allocate_region!(4096, place)
      SharedMemory.write!(id, "x", place)
      SharedMemory.read!(id, place)
      SharedMemory.cleanup_regions!(place)
      # Statistics are another thing.
      assert %{operations: %{allocate: %{count: 1}}} = SharedMemory.stats!()
    end)

    refute_received {:event, _, _, _}

    with_config([telemetry_enabled: true], fn ->
      assert Telemetry.enabled?()
      SharedMemory.allocate_region!(4096, place)
      assert_span(:allocate, nil, :ok)
    end)
  end

  for {kind, fail} <- [
        error: "raise \"no\"",
        throw: "throw(:no)",
        exit: "exit(:no)",
        undefined: "apply(:no_such_module, :no, [])"
      ] do
    @fail fail
    @tag capture_log: true
    test "R10.3 a handler that raises harms no call: #{kind}", %{place: place} do
      {handler, _} = Code.eval_string("fn _event, _measured, _about, _config -> #{@fail} end")
      # In callers, and in processes of ours: nobody dies of it, nothing of it is lost.
      watched = for {_, pid, _, _} <- children(), is_pid(pid), do: {pid, Process.monitor(pid)}

      # One that fails is detached, so each event has its own.
      for event <- Telemetry.events(), do: Listener.attach({:fails, event}, [event], handler, nil)
      run_everything(place)

      # Some events come from processes that nobody waits for.
      for event <- Telemetry.events() do
        assert eventually(fn -> {:fails, event} not in Listener.handlers(event) end)
      end

      for {pid, monitor} <- watched, do: refute_received({:DOWN, ^monitor, _, ^pid, _})
      # The others go on.
      for event <- Telemetry.events(), do: assert_receive({:event, ^event, _, _}, 10_000)
      assert {:ok, %{status: :ok}} = SharedMemory.health_check(place)
    end
  end

  defp children, do: Supervisor.which_children(Snakepit.SharedMemory.Supervisor)

  test "with a listener the statistics are the same", %{place: place} do
    SharedMemory.reset_stats!()
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "1234", place)
    "1234" = SharedMemory.read!(id, place)
    {:error, _} = SharedMemory.read("nobody", place)
    stats = SharedMemory.stats!()
    assert %{count: 1, bytes: 4, errors: %{not_found: 1}} = stats.operations.read
    assert %{count: 1, bytes: 4} = stats.operations.write
    assert %{count: 1, samples: 1} = stats.operations.allocate
  end

  test "without a listener nothing changes", %{place: place} do
    :persistent_term.put(:snakepit_shm_telemetry, false)
    refute Telemetry.enabled?()
    id = SharedMemory.allocate_region!(4096, place)
    assert {:ok, 2} = SharedMemory.write(id, "x", place)
    refute_received {:event, _, _, _}
  end
end
