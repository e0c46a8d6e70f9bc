defmodule Snakepit.SharedMemory.TelemetryTest do
  # Changes whether the whole VM emits events.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Listener, Telemetry}

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

  test "without a listener nothing changes", %{place: place} do
    :persistent_term.put(:snakepit_shm_telemetry, false)
    refute Telemetry.enabled?()
    id = SharedMemory.allocate_region!(4096, place)
    assert {:ok, 2} = SharedMemory.write(id, "x", place)
    refute_received {:event, _, _, _}
  end
end
