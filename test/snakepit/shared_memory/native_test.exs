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

    ending = [:discard, :release, :remove, :close_reader, :seal, :seal_dirty, :unsubscribe]

    for {function, arity} <- functions(),
        function not in ending,
        good <- [writer, reader, subscription, native(place, "target")],
        thing <- nonsense() do
      survives(function, [good | List.duplicate(thing, arity - 1)])
      survives(function, List.duplicate(thing, arity - 1) ++ [good])
    end

    # All resources still are what they were.
    assert {:ok, version} = Native.write(writer, "still here", nil)
    assert {:ok, "still here"} = Native.read(reader)
    assert {:ok, ^version} = Native.reader_version(reader)
    assert :ok = Native.unsubscribe(subscription)
    assert {:ok, :ok} = Native.discard(writer)
  end

  test "a resource of another kind is a wrong type", %{place: place} do
    {:ok, writer} = Native.create(native(place, "target"))
    {:ok, reader} = Native.attach(native(place, "target"))
    assert_raise ArgumentError, fn -> Native.read(writer) end
    assert_raise ArgumentError, fn -> Native.write(reader, "x", nil) end
    assert_raise ArgumentError, fn -> Native.unsubscribe(reader) end
    assert_raise ArgumentError, fn -> Native.subscribe(writer, self(), 0, true) end
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
