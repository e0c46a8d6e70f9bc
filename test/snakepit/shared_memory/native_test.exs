defmodule Snakepit.SharedMemory.NativeTest do
  use Snakepit.SharedMemory.Case, async: true

  @moduletag timeout: 120_000

  # Whatever these are, no function takes them for what it wants.
  defp nonsense do
    [
      nil,
      :atom,
      -1,
      1.5,
      0x1_0000_0000_0000_0000_0000,
      <<1::3>>,
      <<255, 254>>,
      {},
      {:ok, 1},
      ["a" | :b],
      %{},
      %{name: "x"},
      %{"__snakepit_shm__" => self()},
      self(),
      make_ref(),
      fn -> :ok end
    ]
  end

  defp functions do
    for {name, arity} <- Native.__info__(:functions),
        arity > 0,
        name not in [:load, :__info__],
        do: {name, arity}
  end

  defp survives(function, arguments) do
    case apply(Native, function, arguments) do
      {:error, {code, message, _segment, remedy}} when is_atom(code) ->
        assert is_binary(message) and is_binary(remedy)

      {:error, :dirty} ->
        :ok

      # A function may find one of them good enough; then it must have done what it says.
      {:ok, _} ->
        :ok

      :ok ->
        :ok
    end
  rescue
    error in [ArgumentError, ErlangError] ->
      refute match?(%ErlangError{original: :nif_panicked}, error),
             "#{function} panicked on #{inspect(arguments)}"
  end

  test "every function survives nonsense in every argument" do
    assert length(functions()) > 25

    for {function, arity} <- functions(), thing <- nonsense() do
      survives(function, List.duplicate(thing, arity))
    end
  end

  test "every function of a resource survives nonsense behind a good one", %{place: place} do
    {:ok, writer} = Native.create(native(place, "target"))
    {:ok, 2} = Native.write(writer, "value", nil)
    {:ok, reader} = Native.attach(native(place, "target"))
    {:ok, subscription} = Native.subscribe(reader, self(), 2, false)
    {:ok, membership} = Native.join(place[:namespace], place[:dir])
    watch = Map.merge(%{mode: :simulation, grace: 0, interval: 1000}, Map.new(place))
    {:ok, reaper} = Native.start_reaper(watch, self())

    ending =
      [:discard, :release, :remove, :close_reader, :seal, :seal_dirty, :unsubscribe] ++
        [:leave, :stop_reaper]

    for {function, arity} <- functions(),
        function not in ending,
        good <- [writer, reader, subscription, membership, reaper, native(place, "target")],
        thing <- nonsense() do
      survives(function, [good | List.duplicate(thing, arity - 1)])
      survives(function, List.duplicate(thing, arity - 1) ++ [good])
    end

    # All resources still are what they were.
    assert {:ok, version} = Native.write(writer, "still here", nil)
    assert {:ok, "still here"} = Native.read(reader)
    assert {:ok, ^version} = Native.reader_version(reader)
    assert :ok = Native.unsubscribe(subscription)
    assert {:ok, %{removed: 0}} = Native.reaper_stats(reaper)
    assert :ok = Native.stop_reaper(reaper)
    assert :ok = Native.leave(membership)
    assert {:ok, :ok} = Native.discard(writer)
  end

  test "a map that is no cleanup and no reaper, key by key", %{place: place} do
    watch = Map.merge(%{mode: :simulation, grace: 0, interval: nil}, Map.new(place))
    wanted = %{grace: 0, min_age: 0, module: nil, pattern: nil, dry_run: false, corrupted: false}
    wanted = Map.merge(wanted, Map.new(place))
    assert {:ok, %{removed: []}} = Native.cleanup(wanted)

    for {good, call} <- [{wanted, &Native.cleanup/1}, {watch, &Native.start_reaper(&1, self())}],
        key <- Map.keys(good) do
      assert_raise_any(fn -> call.(Map.delete(good, key)) end)
      assert_raise_any(fn -> call.(Map.put(good, key, self())) end)
    end

    assert {:error, {:invalid_name, _, _, _}} = Native.cleanup(%{wanted | namespace: "a_b"})
    assert {:error, {_, _, _, _}} = Native.cleanup(%{wanted | dir: "/no/such/directory"})
    assert {:error, {_, _, _, _}} = Native.start_reaper(%{watch | dir: "/no/such/dir"}, self())
  end

  test "a resource of another kind is a wrong type", %{place: place} do
    {:ok, writer} = Native.create(native(place, "target"))
    {:ok, reader} = Native.attach(native(place, "target"))
    assert_raise ArgumentError, fn -> Native.read(writer) end
    assert_raise ArgumentError, fn -> Native.write(reader, "x", nil) end
    assert_raise ArgumentError, fn -> Native.unsubscribe(reader) end
    assert_raise ArgumentError, fn -> Native.subscribe(writer, self(), 0, true) end

    for {shape, item} <- [{[4], 1}, {[3], 0}, {[-3], 1}, {[2 ** 63, 2], 1}, {:x, 1}] do
      assert_raise ArgumentError, fn -> Native.in_c_order("abc", shape, item) end
    end

    assert_raise ArgumentError, fn -> Native.subscribe(reader, :me, 0, true) end
    assert_raise ArgumentError, fn -> Native.subscribe(reader, self(), 0, :maybe) end
    assert {:ok, :ok} = Native.discard(writer)
  end

  test "a map that is no segment, key by key", %{place: place} do
    good = native(place, "target")

    for key <- Map.keys(good) do
      assert_raise_any(fn -> Native.create(Map.delete(good, key)) end)
      assert_raise_any(fn -> Native.create(Map.put(good, key, self())) end)
    end

    assert {:error, {:not_found, _, "target", _}} = Native.attach(good)
  end

  defp assert_raise_any(fun) do
    fun.()
    flunk("nothing was raised")
  rescue
    error in [ArgumentError, ErlangError] -> error
  end

  test "after an end every call says closed", %{place: place} do
    {:ok, writer} = Native.create(native(place, "target"))
    {:ok, 2} = Native.write(writer, "x", nil)
    {:ok, reader} = Native.attach(native(place, "target"))
    {:ok, second} = Native.share_reader(reader)
    {:ok, :ok} = Native.close_reader(reader)
    {:ok, :ok} = Native.discard(writer)

    for call <- [
          fn -> Native.read(reader) end,
          fn -> Native.read_dirty(reader) end,
          fn -> Native.read_range(reader, 0, 1) end,
          fn -> Native.reader_info(reader) end,
          fn -> Native.reader_version(reader) end,
          fn -> Native.reader_binary(reader) end,
          fn -> Native.reader_handle(reader) end,
          fn -> Native.share_reader(reader) end,
          fn -> Native.check_age(reader, 1) end,
          fn -> Native.subscribe(reader, self(), 0, true) end,
          fn -> Native.close_reader(reader) end,
          fn -> Native.write(writer, "y", nil) end,
          fn -> Native.write_dirty(writer, "y", nil) end,
          fn -> Native.write_at(writer, 0, "y") end,
          fn -> Native.write_at_dirty(writer, 0, "y") end,
          fn -> Native.seal(writer) end,
          fn -> Native.seal_dirty(writer) end,
          fn -> Native.writer_binary(writer) end,
          fn -> Native.writer_handle(writer) end,
          fn -> Native.release(writer) end,
          fn -> Native.discard(writer) end
        ] do
      assert {:error, {:closed, _, "target", _}} = call.()
    end

    assert {:ok, "x"} = Native.read(second)
  end

  test "a writer ends its own segment, not another one of that name", %{place: place} do
    {:ok, first} = Native.create(native(place, "target"))
    {:ok, :ok} = Native.remove(native(place, "target"))
    {:ok, second} = Native.create(native(place, "target"))
    {:ok, 2} = Native.write(second, "mine", nil)
    assert {:ok, :ok} = Native.discard(first)

    {:ok, reader} = Native.attach(native(place, "target"))
    assert {:ok, "mine"} = Native.read(reader)
    assert {:ok, 4} = Native.write(second, "still", nil)
    assert {:ok, :ok} = Native.discard(second)
    assert {:error, {:not_found, _, _, _}} = Native.attach(native(place, "target"))
  end

  test "prefault maps the pages at once", %{place: place, dir: dir} do
    mebibyte = 1024 * 1024
    resident = fn -> dir |> mapped_kilobytes() |> Enum.sum() end
    {:ok, plain} = Native.create(native(place, "plain", %{size: mebibyte, slots: 1}))
    before = resident.()
    assert before < 1024
    settings = %{size: mebibyte, slots: 1, prefault: true}
    {:ok, writer} = Native.create(native(place, "target", settings))
    assert resident.() - before >= 1024
    for writer <- [plain, writer], do: assert({:ok, :ok} = Native.discard(writer))
  end

  test "huge pages are asked for, and refused by name where there are none", context do
    %{place: place, dir: dir} = context
    {:ok, machine} = Native.capabilities(dir)
    settings = %{size: 4 * 1024 * 1024, slots: 1, huge_pages: :require}
    answer = Native.create(native(place, "huge", settings))

    if machine.huge_pages_possible do
      assert {:ok, writer} = answer
      assert {:ok, :ok} = Native.discard(writer)
    else
      assert {:error, {code, message, _, _}} = answer
      assert code in [:invalid_option, :resource_exhausted]
      assert message =~ "huge"
    end
  end

  # Of each mapping of a file in `dir`, how much is in memory.
  defp mapped_kilobytes(dir) do
    parts = "/proc/self/smaps" |> File.read!() |> String.split(~r/^(?=[0-9a-f]+-[0-9a-f]+ )/m)

    for part <- parts, part =~ dir do
      [_, kilobytes] = Regex.run(~r/^Rss: +(\d+) kB/m, part)
      String.to_integer(kilobytes)
    end
  end

  test "a subscription that has ended keeps no reader", %{place: place} do
    count = fn ->
      {:ok, report} = Native.inspect_segment(native(place, "target"))
      report.reader_count
    end

    {:ok, writer} = Native.create(native(place, "target"))
    {:ok, reader} = Native.attach(native(place, "target"))
    {:ok, stopped} = Native.subscribe(reader, self(), 0, true)
    {:ok, :ok} = Native.close_reader(reader)
    assert count.() == 1
    :ok = Native.unsubscribe(stopped)
    # At once, and though the term is still there.
    assert count.() == 0
    assert :ok = Native.set_active(stopped, true)

    {:ok, reader} = Native.attach(native(place, "target"))
    {:ok, finished} = Native.subscribe(reader, self(), 0, true)
    {:ok, :ok} = Native.close_reader(reader)
    {:ok, 2} = Native.write(writer, "last", nil)
    {:ok, 2} = Native.seal(writer)
    assert_receive {:snakepit_shm, ^finished, {:closed, "target", :sealed}}, 10_000
    assert eventually(fn -> count.() == 0 end)
    assert :ok = Native.unsubscribe(finished)
    {:ok, :ok} = Native.discard(writer)
  end

  test "membership and reaper: their ends may be told twice", %{place: place, dir: dir} do
    assert {:error, {:invalid_name, _, _, _}} = Native.join("a/b", dir)
    {:ok, one} = Native.join(place[:namespace], dir)
    {:ok, two} = Native.join(place[:namespace], dir)
    assert [_participants] = File.ls!(dir)
    for _ <- 1..2, do: assert(:ok = Native.leave(one))
    assert [_participants] = File.ls!(dir)
    assert :ok = Native.leave(two)
    assert File.ls!(dir) == []

    watch = %{namespace: place[:namespace], dir: dir, mode: :real_time, grace: 0, interval: nil}

    assert {:error, {:invalid_name, _, _, _}} =
             Native.start_reaper(%{watch | namespace: ""}, self())

    {:ok, reaper} = Native.start_reaper(watch, self())
    assert {:ok, %{removed: 0, deaths: 0}} = Native.reaper_stats(reaper)
    assert {:ok, :ok} = Native.sweep_now(reaper)
    for _ <- 1..2, do: assert(:ok = Native.stop_reaper(reaper))
    assert {:error, {:closed, _, "reaper", _}} = Native.reaper_stats(reaper)
    assert {:error, {:closed, _, "reaper", _}} = Native.sweep_now(reaper)
    assert File.ls!(dir) == []
  end

  test "large work is refused on a normal scheduler and done on a dirty one", %{place: place} do
    size = 1024 * 1024
    {:ok, writer} = Native.create(native(place, "target", %{size: size}))
    {:ok, reader} = Native.attach(native(place, "target"))
    value = :crypto.strong_rand_bytes(size)
    pieces = for <<piece::binary-size(100) <- value>>, do: piece
    many = List.duplicate("x", 10_000)

    for data <- [value, [value], pieces, many] do
      assert {:error, :dirty} = Native.write(writer, data, nil)
      assert {:ok, _} = Native.write_dirty(writer, data, nil)
    end

    {:ok, _} = Native.write_dirty(writer, value, nil)
    assert {:error, :dirty} = Native.read(reader)
    assert {:ok, ^value} = Native.read_dirty(reader)
    assert {:error, :dirty} = Native.read_range(reader, 1, size - 1)
    assert {:error, :dirty} = Native.write_at(writer, 0, "x")
    assert {:ok, :ok} = Native.discard(writer)
  end

  test "the errors of the core are those that Elixir documents" do
    native = Enum.map(Native.error_codes(), &String.to_atom/1)
    assert Enum.sort(native) == Enum.sort(Error.native_codes())
  end

  test "an unloadable library is explained" do
    program = """
    Application.load(:snakepit_shared_memory)
    Snakepit.SharedMemory.Native.error_codes()
    """

    # The modules without priv/ beside them.
    beams = Path.join(System.tmp_dir!(), "snakepit-#{System.unique_integer([:positive])}")
    ebin = Path.join([beams, "snakepit_shared_memory", "ebin"])
    File.mkdir_p!(Path.dirname(ebin))
    File.cp_r!(Application.app_dir(:snakepit_shared_memory, "ebin"), ebin)
    on_exit(fn -> File.rm_rf!(beams) end)

    {output, status} = System.cmd("elixir", ["-pa", ebin, "-e", program], stderr_to_stdout: true)

    assert status != 0
    assert output =~ "could not be loaded"
    assert output =~ "mix compile"
  end
end
