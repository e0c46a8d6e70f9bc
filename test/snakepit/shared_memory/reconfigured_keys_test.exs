defmodule Snakepit.SharedMemory.ReconfiguredKeysTest do
  # What `reconfigure/1` says to have applied is heeded from then on: each key by itself.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Bridge, Config, Health, Janitor, Listener, ReferenceCounter}
  alias Snakepit.SharedMemory.{Registry, Telemetry}

  # With one value only, or none that this machine need have.
  @nothing_to_change ~w(security_level encryption_enabled audit_access secure_cleanup
                        platform_options)a

  # The application in this test's own place, as it was before afterwards.
  setup %{place: place} do
    before = Application.get_env(:snakepit, :shared_memory)
    restart(place)
    on_exit(fn -> restart(before) end)
    :ok
  end

  defmodule Source do
    @moduledoc false
    @behaviour Snakepit.SharedMemory.SessionSource

    @impl true
    def session_state("here"), do: :active
    def session_state(_id), do: :unknown
    @impl true
    def worker_state(_id), do: :unknown
  end

  defp set(key, value) do
    assert SharedMemory.reconfigure(%{key => value}) ==
             {:ok, %{applied: [key], needs_restart: [], unchanged: []}}
  end

  defp allocate(opts \\ []), do: SharedMemory.allocate_region(4096, [slots: 1] ++ opts)
  defp allocate!(opts \\ []), do: SharedMemory.allocate_region!(4096, [slots: 1] ++ opts)

  # A limit holds for what was there before it, too.
  defp refused(key, opts) do
    assert {:error, %{code: :resource_exhausted, message: message}} = allocate(opts)
    assert message =~ inspect(key)
    set(key, Config.new([]) |> elem(1) |> Map.fetch!(key))
    assert {:ok, _id} = allocate(opts)
  end

  @limits [
    max_regions: {2, []},
    max_total_memory: {8192, []},
    max_regions_per_process: {2, []},
    max_memory_per_process: {8192, []},
    max_regions_per_session: {2, [session: "s"]},
    max_memory_per_session: {8192, [session: "s"]}
  ]

  for {key, {value, opts}} <- @limits do
    test "R14.5 #{key}" do
      for _ <- 1..2, do: allocate!(unquote(opts))
      set(unquote(key), unquote(value))
      refused(unquote(key), unquote(opts))
    end
  end

  @proofs [
    :max_region_size,
    :on_limit,
    :default_timeout,
    :reference_grace,
    :mode,
    :cleanup_interval,
    :grace,
    :telemetry_enabled,
    :performance_monitoring,
    :health_check_interval,
    :call_timeout,
    :history_limit,
    :session_source,
    :bridge_via,
    :bridge_threshold,
    :bridge_adaptive,
    :bridge_pools
  ]

  for key <- @proofs do
    test("R14.5 #{key}", context, do: prove(unquote(key), context))
  end

  test "no key is left out" do
    tested = Keyword.keys(@limits) ++ @proofs
    # `Snakepit.SharedMemory.PoolTest` has a test of these.
    pool = [
      :allocation_strategy,
      :enable_defragmentation | ~w(pool_max_bytes pool_idle_timeout pool_zero)a
    ]

    known = tested ++ pool ++ @nothing_to_change ++ Config.needs_restart()
    assert Enum.sort(known) == Enum.sort(Config.keys())
  end

  defp prove(:max_region_size, _context) do
    set(:max_region_size, 4096)
    assert {:error, %{code: :resource_exhausted}} = SharedMemory.allocate_region(8192)
    assert {:ok, _id} = allocate()
  end

  defp prove(:on_limit, _context) do
    id = allocate!()
    set(:max_regions, 1)
    assert code(allocate()) == :resource_exhausted
    set(:on_limit, {:throttle, 60_000})
    waiting = Task.async(fn -> allocate() end)
    assert eventually(fn -> :sys.get_state(Registry).waiting != Registry.__struct__().waiting end)
    SharedMemory.deallocate_region!(id)
    assert {:ok, _id} = Task.await(waiting, 60_000)
  end

  defp prove(:default_timeout, _context) do
    assert SharedMemory.get_region_info!(allocate!()).timeout == nil
    set(:default_timeout, 3_600_000)
    assert SharedMemory.get_region_info!(allocate!()).timeout == 3_600_000
  end

  defp prove(:reference_grace, _context) do
    set(:reference_grace, 0)
    id = allocate!(cleanup_policy: :reference_counted)
    assert {:ok, 0} = ReferenceCounter.decrement(id, self())
    assert eventually(fn -> code(SharedMemory.read(id)) == :not_found end, 9_000)
  end

  defp prove(:mode, _context) do
    assert eventually(fn -> :sys.get_state(Janitor).reaper != nil end)
    before = :sys.get_state(Janitor).reaper
    set(:mode, :simulation)
    assert eventually(fn -> :sys.get_state(Janitor).reaper != before end)
    assert :sys.get_state(Janitor).config.mode == :simulation
  end

  defp prove(:cleanup_interval, _context) do
    sweeps = fn -> with({:ok, %{sweeps: n}} <- Janitor.stats(), do: n) end
    set(:cleanup_interval, 2)
    # A second each with the default.
    assert eventually(fn -> is_integer(sweeps.()) and sweeps.() > 30 end, 20_000)
  end

  defp prove(:grace, %{dir: dir, place: place}) do
    {:ok, writer} = Native.create(native(place, "left"))
    {:ok, :ok} = Native.release(writer)
    assert TestDir.leftovers(dir) != []
    set(:grace, 0)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end, 9_000)
  end

  defp prove(:telemetry_enabled, _context) do
    Listener.attach(self())
    set(:telemetry_enabled, false)
    refute Telemetry.enabled?()
    set(:telemetry_enabled, true)
    assert Telemetry.enabled?()
  end

  defp prove(:performance_monitoring, _context) do
    set(:performance_monitoring, false)
    assert code(SharedMemory.stats()) == :disabled
    set(:performance_monitoring, true)
    allocate!()
    assert SharedMemory.stats!().operations.allocate.count == 1
  end

  defp prove(:health_check_interval, _context) do
    Listener.attach(self())
    checked = [:snakepit, :shared_memory, :health, :checked]
    set(:health_check_interval, 10)
    assert_receive {:event, ^checked, _, %{source: :monitor}}, 30_000
    # Also by the one that comes after a crash.
    before = Process.whereis(Health.Monitor)
    capture_log(fn -> kill(before) end)
    assert eventually(fn -> Process.whereis(Health.Monitor) not in [nil, before] end)
    assert :sys.get_state(Health.Monitor).interval == 10
    set(:health_check_interval, nil)
    assert eventually(fn -> :sys.get_state(Health.Monitor).timer == nil end)
  end

  defp prove(:call_timeout, _context) do
    set(:call_timeout, 50)
    :sys.suspend(Registry)

    try do
      assert {:error, %{code: :timeout, message: message}} = allocate()
      assert message =~ "50 ms"
    after
      :sys.resume(Registry)
    end
  end

  defp prove(:history_limit, _context) do
    id = allocate!()
    for _ <- 1..5, do: id |> SharedMemory.map_region!() |> SharedMemory.unmap_region!()
    assert length(SharedMemory.history!(id)) == 11
    set(:history_limit, 3)
    assert length(SharedMemory.history!(id)) == 3
    set(:history_limit, 5)
    for _ <- 1..5, do: id |> SharedMemory.map_region!() |> SharedMemory.unmap_region!()
    assert length(SharedMemory.history!(id)) == 5
  end

  defmodule Via do
    @moduledoc false
    def execute(_command, args, _opts), do: {:ok, is_map(args.x)}
  end

  defp prove(:bridge_via, _context) do
    assert code(Bridge.execute("t", %{x: "x"})) == :unsupported
    set(:bridge_via, Via)
    assert Bridge.execute("t", %{x: "x"}) == {:ok, false}
  end

  defp prove(:bridge_threshold, _context) do
    set(:bridge_threshold, 10)
    # Nearer to the threshold it might be a trial.
    text = String.duplicate("x", 100)
    assert Bridge.execute("t", %{x: text}, via: Via, pool: Other) == {:ok, true}
  end

  defp prove(:bridge_adaptive, _context) do
    assert %{adaptive: true} = Bridge.threshold()
    set(:bridge_adaptive, false)
    assert %{adaptive: false} = Bridge.threshold()
  end

  # As a whole: what is not in the new map is as for all.
  defp prove(:bridge_pools, _context) do
    set(:bridge_pools, %{One => [threshold: 1], Two => [threshold: 2]})
    assert %{threshold: 1} = Bridge.threshold(One)
    set(:bridge_pools, %{Two => [threshold: 3]})
    assert [65_536, 3] == for(pool <- [One, Two], do: Bridge.threshold(pool).threshold)
  end

  defp prove(:session_source, _context) do
    set(:session_source, Source)
    allocate!(session: "here")
    allocate!(session: "elsewhere")
    assert Snakepit.SharedMemory.Table.leases() == [session: "here"]
  end
end
