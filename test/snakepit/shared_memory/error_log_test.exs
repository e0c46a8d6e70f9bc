defmodule Snakepit.SharedMemory.ErrorLogTest do
  # The level of the log, and what is counted for its lines, belong to the whole VM.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.Error.Log
  alias Snakepit.SharedMemory.Janitor

  setup do
    level = Logger.level()
    Logger.configure(level: :debug)
    on_exit(fn -> Logger.configure(level: level) end)
    # What earlier tests were refused does not count here.
    end_span()
    :ok
  end

  # As the clock does, without waiting for it.
  defp end_span do
    send(Log, :over)
    :sys.get_state(Log)
  end

  defp lines(log, pattern), do: log |> String.split("\n") |> Enum.count(&(&1 =~ pattern))

  # Every function with arguments that none can accept, by name; those without arguments and those
  # of the module itself are not calls that can be got wrong.
  defp calls do
    for {name, arity} <- SharedMemory.__info__(:functions),
        arity > 0,
        not String.ends_with?(to_string(name), "!") do
      {name, fn -> apply(SharedMemory, name, List.duplicate(:nonsense, arity)) end}
    end
  end

  test "R8.5 every function logs its error once, and says what, where and what to do" do
    assert length(calls()) >= 18

    for {name, call} <- calls() do
      end_span()
      log = capture_log(fn -> assert {:error, %Error{}} = call.() end)
      assert lines(log, "shared memory: ") == 1, "#{name} logged: #{log}"
      assert log =~ "remedy: "
    end
  end

  test "at the level of the code", %{place: place} do
    for {level, call} <- [
          {"[debug]", fn -> SharedMemory.read("nobody", place) end},
          {"[info]", fn -> SharedMemory.allocate_region(5000, place) end}
        ] do
      log = capture_log(fn -> assert {:error, _} = call.() end)
      assert lines(log, level) == 1
    end
  end

  test "R8.2 corruption is an error in the log, exhaustion a warning", %{place: place} do
    with_config([max_regions: 1], fn ->
      id = SharedMemory.allocate_region!(4096, place)
      log = capture_log(fn -> SharedMemory.allocate_region(4096, place) end)
      assert lines(log, ~r/\[warn(ing)?\].*:max_regions.*resource_exhausted/) == 1

      SharedMemory.write!(id, "x", place)
      File.write!(file_of(id, place), "")
      log = capture_log(fn -> assert code(SharedMemory.read(id, place)) == :truncated end)
      assert lines(log, ~r/\[error\].*truncated/) == 1
      SharedMemory.deallocate_region(id, place)
    end)
  end

  test "with metadata for those who filter" do
    {:ok, seen} = Agent.start_link(fn -> [] end)
    handler = :shm_error_log_test

    :ok =
      :logger.add_handler(handler, __MODULE__.Handler, %{config: %{agent: seen}, level: :debug})

    SharedMemory.read("filtered")
    :ok = :logger.remove_handler(handler)
    assert [metadata] = Agent.get(seen, & &1)
    assert %{shm_code: :not_found, shm_class: :region_not_found} = metadata
    assert %{shm_region: "filtered", shm_operation: :read} = metadata
    Agent.stop(seen)
  end

  defmodule Handler do
    def log(%{meta: %{shm_code: _} = meta}, %{config: %{agent: agent}}) do
      Agent.update(agent, &[meta | &1])
    end

    def log(_event, _config), do: :ok
  end

  test "a loop does not flood the log, and what was left out is counted" do
    log = capture_log(fn -> for _ <- 1..1000, do: {:error, _} = SharedMemory.read("nobody") end)
    assert lines(log, "not_found") == Log.burst()

    log = capture_log(fn -> end_span() end)
    assert lines(log, "shared memory: ") == 1
    assert log =~ "#{1000 - Log.burst()} more errors :not_found in read"

    # Others are counted by themselves, and a new span begins.
    log = capture_log(fn -> SharedMemory.read("nobody") end)
    assert lines(log, "not_found") == 1
    assert capture_log(fn -> end_span() end) == ""
  end

  test "one error is one line of bounded length, whatever its name is" do
    for id <- ["two\nlines\r\e[31m", String.duplicate("x", 100_000), <<255, 254>>] do
      log = capture_log(fn -> assert {:error, _} = SharedMemory.read(id) end)

      assert [line] =
               log |> String.split("\n", trim: true) |> Enum.filter(&(&1 =~ "shared memory"))

      refute line =~ "\e[31m"
      assert String.length(line) < 1_200
    end
  end

  test "what goes wrong without a caller is limited as well" do
    failed = {:snakepit_shm, :reaper, {:failed, "no room for a sweep"}}

    log =
      capture_log(fn ->
        for _ <- 1..100, do: send(Janitor, failed)
        :sys.get_state(Janitor)
      end)

    assert lines(log, ~r/\[error\].*no room for a sweep/) == Log.burst()
    assert capture_log(fn -> end_span() end) =~ "#{100 - Log.burst()} more errors :io in cleanup"
  end

  test "an error that is handed on is logged once" do
    log =
      capture_log(fn ->
        {:error, error} = SharedMemory.read("nobody")
        assert Log.note(error) == error
        assert_raise Error, fn -> SharedMemory.read!("nobody-else") end
      end)

    assert lines(log, "not_found") == 2
  end

  test "many processes at once are counted together" do
    log =
      capture_log(fn ->
        1..50
        |> Task.async_stream(fn _ -> for _ <- 1..20, do: SharedMemory.read("nobody") end,
          max_concurrency: 50
        )
        |> Stream.run()
      end)

    assert lines(log, "not_found") == Log.burst()
    log = capture_log(fn -> end_span() end)
    assert log =~ "#{1000 - Log.burst()} more errors"
  end

  test "what nobody would see is not counted" do
    Logger.configure(level: :warning)
    for _ <- 1..100, do: {:error, _} = SharedMemory.read("nobody")
    Logger.configure(level: :debug)
    assert capture_log(fn -> end_span() end) == ""
  end

  test "killed, it is started again and says what it owed; messages of strangers harm nothing" do
    capture_log(fn -> for _ <- 1..100, do: SharedMemory.read("nobody") end)
    old = Process.whereis(Log)
    kill(old)
    assert eventually(fn -> Process.whereis(Log) not in [nil, old] end)
    # A span that is open has a clock.
    assert is_reference(:sys.get_state(Log))
    assert capture_log(fn -> end_span() end) =~ "#{100 - Log.burst()} more errors"

    log =
      capture_log(fn ->
        send(Log, :hello)
        GenServer.cast(Log, :what)
        assert {:error, :unexpected} = GenServer.call(Log, :what)
      end)

    assert lines(log, "unexpected") == 3
  end

  test "while the application does not run, errors are answered and nothing is logged" do
    capture_log(fn -> :ok = Application.stop(:snakepit_shared_memory) end)

    try do
      log =
        capture_log(fn ->
          assert code(SharedMemory.read("x")) == :not_started
          assert code(SharedMemory.allocate_region(4096, bad: 1)) == :invalid_option
        end)

      assert lines(log, "shared memory: ") == 0
    after
      {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    end
  end

  test "success is silent", %{place: place} do
    log =
      capture_log(fn ->
        id = SharedMemory.allocate_region!(4096, place)
        SharedMemory.write!(id, "x", place)
        "x" = SharedMemory.read!(id, place)
        SharedMemory.deallocate_region!(id, place)
      end)

    assert lines(log, "shared memory: ") == 0
  end
end
