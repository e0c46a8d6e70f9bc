defmodule Snakepit.SharedMemory.FetchingTest do
  # What was given away and is fetched: it is taken over before the registry knows of it, and whatever happens in
  # between, it is somebody's or nobody's, never lost.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Native, Registry, Target}

  @value "for whoever comes"

  # As a worker leaves it.
  defp given_away(place, descriptor \\ nil, data \\ @value) do
    target = %Target{
      id: "result-#{System.unique_integer([:positive])}",
      namespace: place[:namespace],
      dir: place[:dir],
      key: nil
    }

    settings = %{size: 4096, slots: 1}
    {:ok, writer} = Native.create(Target.native(target, settings))
    {:ok, _} = Native.write(writer, data, descriptor)
    {:ok, _} = Native.seal(writer)
    {:ok, handle} = Native.writer_handle(writer)
    {:ok, :ok} = Native.hand_back(writer, 60_000)
    handle
  end

  defp with_suspended_registry(fun) do
    registry = Process.whereis(Registry)
    :sys.suspend(registry)

    try do
      fun.(registry)
    after
      if Process.alive?(registry), do: :sys.resume(registry)
    end
  end

  defp asked?(registry), do: Process.info(registry, :message_queue_len) != {:message_queue_len, 0}

  test "its new owner is who fetched it", %{place: place, dir: dir} do
    with_config(place, fn ->
      handle = given_away(place)
      assert SharedMemory.fetch!(handle) == @value
      assert %{owner_pid: owner, orphaned: false} = SharedMemory.get_region_info!(handle)
      assert owner == self()
      SharedMemory.deallocate_region!(handle)
      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end)
  end

  test "R8.3 it goes with a caller that is killed before the registry knows", context do
    %{place: place, dir: dir} = context

    with_config(place, fn ->
      handle = given_away(place)

      with_suspended_registry(fn registry ->
        pid = spawn(fn -> SharedMemory.fetch(handle) end)
        assert eventually(fn -> asked?(registry) end)
        kill(pid)
      end)

      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end)
  end

  test "R6.4 it is handed back when the registry does not answer in time", %{place: place} do
    with_config([call_timeout: 100] ++ place, fn ->
      handle = given_away(place)

      with_suspended_registry(fn _registry ->
        assert code(SharedMemory.fetch(handle)) == :timeout
      end)

      assert eventually(fn -> SharedMemory.fetch(handle, adopt: false) == {:ok, @value} end)
      assert SharedMemory.fetch!(handle) == @value
      assert %{orphaned: false} = SharedMemory.get_region_info!(handle)
      SharedMemory.deallocate_region!(handle)
    end)
  end

  test "R8.3 a registry that is killed meanwhile costs nobody the value", %{
    place: place,
    dir: dir
  } do
    with_config(place, fn ->
      handle = given_away(place)

      fetch =
        with_suspended_registry(fn registry ->
          owner = self()
          fetch = Task.async(fn -> SharedMemory.fetch(handle, owner: owner) end)
          assert eventually(fn -> asked?(registry) end)
          kill(registry)
          fetch
        end)

      assert Task.await(fetch) == {:ok, @value}
      assert %{orphaned: false} = SharedMemory.get_region_info!(handle)
      SharedMemory.deallocate_region!(handle)
      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end)
  end

  # Whoever asked for it in a form that it has not leaves it to others.
  test "it is left to others by who cannot use it", %{place: place, dir: dir} do
    with_config(place, fn ->
      handle = given_away(place, {:numpy, "<M8[s]", [1]}, <<0::64>>)
      assert code(SharedMemory.fetch(handle, as: :tensor)) == :unsupported
      assert %{orphaned: true} = SharedMemory.get_region_info!(handle)
      assert SharedMemory.fetch!(handle) == <<0::64>>
      SharedMemory.deallocate_region!(handle)
      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end)
  end

  test "one of a hundred who fetch it at once has it, and all have the value", context do
    %{place: place, dir: dir} = context

    with_config(place, fn ->
      for _ <- 1..20 do
        handle = given_away(place)
        owner = self()

        answers =
          1..100
          |> Enum.map(fn _ -> Task.async(fn -> SharedMemory.fetch(handle, owner: owner) end) end)
          |> Task.await_many(30_000)

        assert Enum.uniq(answers) == [{:ok, @value}]
        assert %{owner_pid: ^owner} = SharedMemory.get_region_info!(handle)
        SharedMemory.deallocate_region!(handle)
      end

      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    end)
  end
end
