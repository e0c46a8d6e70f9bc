defmodule Snakepit.SharedMemory.ReconfigurationTest do
  # Changes the configuration of the application that every other test runs on.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Config, Foreign, Janitor, Listener, Reconfiguration, Registry}
  alias Snakepit.SharedMemory.Telemetry

  # The application in this test's own place, as it was before afterwards.
  setup %{place: place} do
    before = Application.get_env(:snakepit, :shared_memory)
    restart(place)
    on_exit(fn -> restart(before) end)
    :ok
  end

  defp running do
    {:ok, config} = Config.fetch(:test)
    config
  end

  defp sweeps do
    case Janitor.stats() do
      {:ok, %{sweeps: count}} -> count
      :not_running -> 0
    end
  end

  defp restarted(name) do
    old = Process.whereis(name)
    capture_log(fn -> kill(old) end)
    assert eventually(fn -> Process.whereis(name) not in [nil, old] end)
  end

  test "R14.5 limits take effect at once, without a restart" do
    ids = for _ <- 1..3, do: SharedMemory.allocate_region!(4096)
    registry = Process.whereis(Registry)

    assert SharedMemory.reconfigure(max_regions: 4, max_region_size: 8192) ==
             {:ok, %{applied: [:max_region_size, :max_regions], needs_restart: [], unchanged: []}}

    assert {:error, %{code: :resource_exhausted} = error} = SharedMemory.allocate_region(12_288)
    assert error.message =~ ":max_region_size"
    id = SharedMemory.allocate_region!(4096)
    assert {:error, error} = SharedMemory.allocate_region(4096)
    assert error.message =~ ":max_regions"

    # Fewer than there are: those that are there stay.
    assert {:ok, _} = SharedMemory.reconfigure(max_regions: 2)
    assert length(SharedMemory.list_regions!(local: true)) == 4
    assert code(SharedMemory.allocate_region(4096)) == :resource_exhausted
    assert {:ok, _} = SharedMemory.reconfigure(max_regions: 5)
    assert {:ok, last} = SharedMemory.allocate_region(4096)

    assert {:ok, _} = SharedMemory.reconfigure(max_total_memory: 16_384 * 6 - 1)
    assert {:error, error} = SharedMemory.allocate_region(4096)
    assert error.message =~ ":max_"

    assert Process.whereis(Registry) == registry
    for id <- [id, last | ids], do: SharedMemory.deallocate_region!(id)
  end

  test "R14.2 R14.5 the cleanup interval takes effect at once" do
    assert {:ok, _} = SharedMemory.reconfigure(cleanup_interval: 3_600_000, mode: :simulation)
    janitor = Process.whereis(Janitor)
    assert {:ok, %{sweeps: before}} = Janitor.stats()
    assert {:ok, %{applied: [:cleanup_interval]}} = SharedMemory.reconfigure(cleanup_interval: 5)
    assert eventually(fn -> sweeps() > before + 20 end)
    assert Process.whereis(Janitor) == janitor
    # The reaper of before has ended.
    assert eventually(fn -> threads("shm-reaper") == 1 end)
  end

  test "the grace takes effect at once", %{place: place, dir: dir} do
    # Long enough for as long as this test lasts.
    never = [grace: 3_600_000, cleanup_interval: 3_600_000, mode: :simulation]
    assert {:ok, _} = SharedMemory.reconfigure(grace: 3_600_000, cleanup_interval: 10)
    peer = Foreign.start(never ++ place)
    allocate = "Snakepit.SharedMemory.allocate_region(4096, name: \"left\")"
    assert {:ok, "left"} = Foreign.run(peer, allocate)
    Foreign.kill(peer)

    # Seen by many sweeps, and left where it is.
    swept = sweeps()
    assert eventually(fn -> sweeps() > swept + 20 end)
    assert {:ok, %{removed: []}} = SharedMemory.cleanup_regions()
    assert TestDir.leftovers(dir) != []

    assert {:ok, %{applied: [:grace]}} = SharedMemory.reconfigure(grace: 0)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
  end

  test "events can be switched off and on" do
    Listener.attach(self())
    assert {:ok, _} = SharedMemory.reconfigure(telemetry_enabled: false)
    assert_receive {:event, [_, _, :config, :changed], _, %{applied: [:telemetry_enabled]}}
    refute Telemetry.enabled?()
    SharedMemory.read("nobody")
    refute_received {:event, [_, _, :region | _], _, _}
    assert {:ok, _} = SharedMemory.reconfigure(telemetry_enabled: true)
    assert Telemetry.enabled?()
    SharedMemory.read("nobody")
    assert_received {:event, [_, _, :region, :read, :stop], _, %{result: :not_found}}
  end

  test "what needs a restart is named, waits, and holds after it", %{dir: dir} do
    other = Path.join(dir, "other")
    File.mkdir!(other)
    before = running()

    assert {:ok, outcome} = SharedMemory.reconfigure(dir: other, namespace: "later", grace: 77)
    assert outcome == %{applied: [:grace], needs_restart: [:dir, :namespace], unchanged: []}
    assert %{running() | grace: before.grace} == before
    id = SharedMemory.allocate_region!(4096)
    assert {:ok, %{namespace: namespace}} = SharedMemory.get_region_info(id)
    assert namespace == before.namespace

    capture_log(fn -> :ok = Application.stop(:snakepit_shared_memory) end)
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    assert %{dir: ^other, namespace: "later", grace: 77} = running()
    id = SharedMemory.allocate_region!(4096)
    assert File.exists?(Path.join(other, "later_#{id}.meta"))
    SharedMemory.deallocate_region!(id)

    capture_log(fn -> :ok = Application.stop(:snakepit_shared_memory) end)
    File.rm_rf!(other)
  end

  test "said twice, the later word holds at the next start", %{dir: dir} do
    assert {:ok, %{needs_restart: [:namespace]}} = SharedMemory.reconfigure(namespace: "later")
    namespace = running().namespace
    assert {:ok, %{unchanged: [:namespace]}} = SharedMemory.reconfigure(namespace: namespace)
    path = %{linux: %{shm_path: "/dev/shm"}}
    assert {:ok, %{needs_restart: [:dir]}} = SharedMemory.reconfigure(platform_options: path)
    assert {:ok, %{unchanged: [:dir]}} = SharedMemory.reconfigure(dir: dir)
    assert {:ok, %{namespace: ^namespace, dir: ^dir}} = Config.load()
  end

  test "one bad value changes nothing" do
    before = {running(), Application.get_env(:snakepit, :shared_memory)}

    for changes <- [
          [grace: 1, max_regions: 0],
          [grace: 1, max_region: 5],
          [grace: 1, security_level: :high],
          [grace: 1, namespace: "under_score"],
          [grace: 1, dir: "/no/such/directory"],
          [grace: 1, platform_options: %{linux: %{hugepages: true}}],
          %{:grace => 1, "grace" => 2},
          :grace,
          nil,
          [1]
        ] do
      assert {:error, %Error{operation: :reconfigure, remedy: remedy}} =
               SharedMemory.reconfigure(changes)

      assert is_binary(remedy)
      assert {running(), Application.get_env(:snakepit, :shared_memory)} == before
    end

    assert_raise Error, ~r/option :grace/, fn -> SharedMemory.reconfigure!(grace: -1) end
  end

  test "nothing said, nothing changed, nothing announced" do
    Listener.attach(self())
    Logger.configure(level: :info)
    on_exit(fn -> Logger.configure(level: :warning) end)

    log =
      capture_log(fn ->
        for changes <- [[], %{}] do
          assert SharedMemory.reconfigure!(changes) ==
                   %{applied: [], needs_restart: [], unchanged: []}
        end

        assert SharedMemory.reconfigure!(grace: running().grace) ==
                 %{applied: [], needs_restart: [], unchanged: [:grace]}
      end)

    refute log =~ "configuration changed"
    refute_received {:event, [_, _, :config, :changed], _, _}
  end

  test "a change is told, as an event and in the log", %{namespace: namespace} do
    Listener.attach(self())
    Logger.configure(level: :info)
    on_exit(fn -> Logger.configure(level: :warning) end)

    log =
      capture_log(fn ->
        SharedMemory.reconfigure!(max_regions: 5, namespace: "later", grace: 10_000)
      end)

    assert log =~
             ~s(max_regions 5 \(was 10000\); after a restart: namespace "later" \(was "#{namespace}"\))

    event = [:snakepit, :shared_memory, :config, :changed]
    assert_receive {:event, ^event, %{applied: 1, needs_restart: 1}, metadata}

    assert %{namespace: ^namespace, applied: [:max_regions], needs_restart: [:namespace]} =
             metadata

    assert metadata.changes == %{max_regions: {10_000, 5}, namespace: {namespace, "later"}}
  end

  test "R14.5 a change survives the crash of every process" do
    changes = [max_regions: 1, cleanup_interval: 5, mode: :simulation, default_timeout: 12_345]
    assert {:ok, _} = SharedMemory.reconfigure(changes)
    expected = running()
    id = SharedMemory.allocate_region!(4096)

    for name <- [Registry, Janitor, Reconfiguration, Error.Log] do
      restarted(name)
      assert running() == expected
      assert eventually(fn -> code(SharedMemory.allocate_region(4096)) == :resource_exhausted end)
      # With the interval of the start it would take more than a minute.
      assert eventually(fn -> sweeps() > 75 end)
    end

    assert :sys.get_state(Registry).config == expected
    assert eventually(fn -> SharedMemory.deallocate_region(id) == {:ok, id} end)
  end

  test "calls at once take effect one after the other" do
    answers =
      1..200
      |> Task.async_stream(fn n -> SharedMemory.reconfigure(max_regions: n, grace: n) end,
        max_concurrency: 50
      )
      |> Enum.map(fn {:ok, answer} -> answer end)

    assert Enum.all?(answers, &match?({:ok, %{applied: [:grace, :max_regions]}}, &1))
    # The last one holds, whole, for everybody.
    assert %{max_regions: n, grace: n} = config = running()
    assert :sys.get_state(Registry).config == config
    assert :sys.get_state(Janitor).config == config
    assert {:ok, ^config} = Config.load()
  end

  test "options inside an option are changed by themselves" do
    windows = running().platform_options.windows
    options = %{windows: %{use_large_pages: true}}
    assert {:ok, _} = SharedMemory.reconfigure(platform_options: options)
    assert running().platform_options.windows == %{windows | use_large_pages: true}
    options = [linux: [use_hugepages: false]]

    assert {:ok, %{unchanged: [:platform_options]}} =
             SharedMemory.reconfigure(platform_options: options)

    assert running().platform_options.windows.use_large_pages
  end

  test "not started and switched off are said", %{place: place} do
    capture_log(fn -> :ok = Application.stop(:snakepit_shared_memory) end)
    assert code(SharedMemory.reconfigure(grace: 1)) == :not_started
    restart([enabled: false] ++ place)
    assert code(SharedMemory.reconfigure(grace: 1)) == :disabled
    restart(place)
  end

  test "a process that is killed while it changes things answers by a named error" do
    # Busy with one that waits for the registry, it gets the other two into its mailbox.
    :ok = :sys.suspend(Registry)
    callers = for n <- 1..3, do: Task.async(fn -> SharedMemory.reconfigure(max_regions: n) end)
    pid = Process.whereis(Reconfiguration)
    queued = fn -> elem(Process.info(pid, :message_queue_len), 1) end
    assert eventually(fn -> queued.() == 2 end)
    capture_log(fn -> kill(pid) end)
    for answer <- Task.await_many(callers), do: assert(code(answer) == :closed)

    # What it had begun is finished by the next one.
    :ok = :sys.resume(Registry)
    assert %{max_regions: n} = running()
    assert n in 1..3
    assert eventually(fn -> :sys.get_state(Registry).config.max_regions == n end)
    assert eventually(fn -> match?({:ok, _}, SharedMemory.reconfigure(max_regions: 9)) end)
  end

  test "messages of strangers are logged and change nothing" do
    log =
      capture_log(fn ->
        send(Reconfiguration, :hello)
        GenServer.cast(Reconfiguration, :what)
        assert {:error, :unexpected} = GenServer.call(Reconfiguration, :what)
      end)

    assert log |> String.split("unexpected") |> length() == 4
  end
end
