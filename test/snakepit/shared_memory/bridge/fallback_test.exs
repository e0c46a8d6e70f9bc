defmodule Snakepit.SharedMemory.Bridge.FallbackTest do
  # What cannot travel by handle does so plainly, and that is told.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog
  import Snakepit.SharedMemory.Transport

  alias Snakepit.SharedMemory.{Listener, Telemetry}

  setup do
    Listener.attach(self())

    Listener.attach(
      "zero-copy",
      for(e <- ~w(export import fallback)a, do: [:snakepit, :zero_copy, e]),
      &Listener.forward/4,
      self()
    )

    :ok
  end

  @event [:snakepit, :shared_memory, :bridge, :fallback]

  test "what cannot be shared travels plainly, with a line and an event", %{place: place} do
    text = String.duplicate("x", 5000)
    place = Keyword.put(place, :dir, "/no/such/directory")

    log =
      capture_log(fn ->
        assert call(%{a: text, b: large(), c: [large()]}, place, fn args, opts ->
                 assert args.a == text
                 assert opts[:binary_parameters] == %{"b" => large()}
                 assert [%{"__snakepit_shm_inline__" => 1}] = args.c
                 {:ok, :done}
               end) == {:ok, :done}
      end)

    assert log =~ ~s(bridge: an argument of "tool" went plainly \(5000 bytes\))
    assert_receive {:event, @event, %{count: 1, bytes: 5000}, metadata}

    assert %{pool: Snakepit.Pool, command: "tool", direction: :arguments, reason: reason} =
             metadata

    assert reason in Error.codes()

    assert_receive {:event, [:snakepit, :zero_copy, :fallback], %{bytes: 5000},
                    %{reason: ^reason}}
  end

  test "what the worker could not resolve is sent again plainly, once", %{place: place} do
    test = self()

    tool = fn args, opts ->
      send(test, {:call, args, opts})

      if is_map(args[:x]),
        do: {:error, %{message: "no", details: ["[snakepit-shm: arguments not resolved] gone"]}},
        else: {:ok, opts[:binary_parameters]["x"]}
    end

    capture_log(fn -> assert call(%{x: large()}, place, tool) == {:ok, large()} end)
    assert_receive {:call, %{x: %{}}, _}
    assert_receive {:call, args, _} when args == %{}
    refute_received {:call, _, _}
    assert_receive {:event, @event, %{bytes: 5000}, %{reason: :unresolved}}

    # Without a handle of ours there is nothing to do better.
    answer = {:error, "[snakepit-shm: arguments not resolved]"}
    assert call(%{x: "small"}, place, fn _, _ -> answer end) == answer
  end

  test "what the worker could not share comes in base64, and is told", %{place: place} do
    inline = fn reason ->
      %{"__snakepit_shm_inline__" => 1, "base64" => Base.encode64(large()), "reason" => reason}
    end

    for {reason, told} <- [
          {"resource_exhausted", :resource_exhausted},
          {"no_such_code_ever", :unknown}
        ] do
      capture_log(fn ->
        assert call(%{}, place, fn _, _ -> {:ok, inline.(reason)} end) == {:ok, large()}
      end)

      assert_receive {:event, @event, %{bytes: 5000}, %{direction: :result, reason: ^told}}
    end

    # Too little to share is no fallback.
    assert call(%{}, place, fn _, _ -> {:ok, inline.(nil)} end) == {:ok, large()}
    refute_received {:event, @event, _, _}
  end

  test "R10.3 Snakepit's own events tell what was exported and imported", %{place: place} do
    call(%{x: large()}, place, fn args, _ -> {:ok, args.x} end, pool: MyPool)
    export = [:snakepit, :zero_copy, :export]
    import_ = [:snakepit, :zero_copy, :import]
    assert_receive {:event, ^export, %{bytes: 5000, duration_ms: ms}, %{pool: MyPool}}
    assert is_float(ms)

    assert_receive {:event, ^import_, %{bytes: 5000},
                    %{command: "tool", subsystem: :shared_memory}}
  end

  test "the table of Snakepit's events names those that are emitted" do
    table = Telemetry |> Code.fetch_docs() |> elem(4) |> Map.fetch!("en")
    named = Regex.scan(~r/^\| `\[:snakepit, :zero_copy, :(\w+)\]`/m, table)
    assert Enum.sort(for [_, name] <- named, do: name) == ~w(export fallback import)
  end

  test "when the application does not run, or is switched off, all goes plainly", %{
    place: place
  } do
    echo = fn args, opts -> {:ok, {args, opts}} end

    log =
      capture_log(fn ->
        with_config([enabled: false], fn ->
          assert {:ok, {%{}, [binary_parameters: %{"x" => _}]}} = call(%{x: large()}, place, echo)
        end)

        :ok = Application.stop(:snakepit_shared_memory)
        assert {:ok, {%{}, [binary_parameters: %{"x" => _}]}} = call(%{x: large()}, place, echo)
        {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
      end)

    assert log =~ "(disabled)"
    assert log =~ "(not_started)"
  end
end
