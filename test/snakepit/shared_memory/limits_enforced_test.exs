defmodule Snakepit.SharedMemory.LimitsEnforcedTest do
  # Changes the limits of the whole application.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Config, Listener, Registry}

  @moduletag :capture_log

  defp waiting, do: :sys.get_state(Registry).waiting |> Snakepit.SharedMemory.Waiting.size()

  test "R14.1 regions and bytes of one process: a named error, others are free", %{place: place} do
    with_config([max_regions_per_process: 2, max_memory_per_process: 40_960], fn ->
      for _ <- 1..2, do: SharedMemory.allocate_region!(4096, place)
      assert {:error, error} = SharedMemory.allocate_region(4096, place)
      assert error.code == :resource_exhausted
      assert error.message =~ ":max_regions_per_process of process #{inspect(self())}"
      assert error.message =~ "needed 1 regions, available 0"
      assert error.remedy =~ "raise :max_regions_per_process"

      # The owner is what counts, not who asks.
      {answer, owner} = in_process(fn -> SharedMemory.allocate_region(8192, place) end)
      assert {:ok, _} = answer

      assert {:error, error} =
               SharedMemory.allocate_region(4096, [owner: owner, slots: 3] ++ place)

      assert error.message =~ ":max_memory_per_process"
      assert error.message =~ "needed 12288 bytes, available 8192"
      assert {:ok, _} = SharedMemory.allocate_region(4096, [owner: owner, slots: 2] ++ place)
      kill(owner)
    end)
  end

  test "R14.1 regions and bytes of one session, over all its owners", %{place: place} do
    with_config([max_regions_per_session: 3, max_memory_per_session: 32_768], fn ->
      options = [session: "s", slots: 1] ++ place
      for _ <- 1..2, do: SharedMemory.allocate_region!(4096, options)
      {answer, owner} = in_process(fn -> SharedMemory.allocate_region(4096, options) end)
      assert {:ok, _} = answer
      assert {:error, error} = SharedMemory.allocate_region(4096, options)
      assert error.message =~ ~s(:max_regions_per_session of session "s")
      assert {:ok, _} = SharedMemory.allocate_region(4096, [session: "t"] ++ place)
      assert {:ok, _} = SharedMemory.allocate_region(4096, place)
      kill(owner)
      assert eventually(fn -> match?({:ok, _}, SharedMemory.allocate_region(4096, options)) end)
      assert {:error, error} = SharedMemory.allocate_region(32_768, [session: "t"] ++ place)
      assert error.message =~ ":max_memory_per_session"
    end)
  end

  test "what outlives its owner counts for the node and the session, not for a process", %{
    place: place
  } do
    limits = [max_regions_per_process: 1, max_regions_per_session: 2, max_regions: 3]

    with_config(limits, fn ->
      options = [cleanup_policy: :manual, session: "s"] ++ place

      for n <- 1..2 do
        {{:ok, _}, owner} = in_process(fn -> SharedMemory.allocate_region(4096, options) end)
        kill(owner)
        assert eventually(fn -> :sys.get_state(Registry).ledger.processes == %{} end)
        assert %{node: {^n, _}} = :sys.get_state(Registry).ledger.usage
      end

      assert {:error, error} = SharedMemory.allocate_region(4096, options)
      assert error.message =~ ":max_regions_per_session"
      assert {:ok, _} = SharedMemory.allocate_region(4096, place)
      {answer, other} = in_process(fn -> SharedMemory.allocate_region(4096, place) end)
      assert {:error, error} = answer
      assert error.message =~ ":max_regions reached"
      kill(other)
      assert %{removed: [_, _]} = SharedMemory.release_session!("s")
    end)
  end

  test "R12.3 limits of a session hold when many allocate at once", %{place: place} do
    with_config([max_regions_per_session: 7], fn ->
      options = [owner: self(), session: "s"] ++ place

      answers =
        1..60
        |> Task.async_stream(fn _ -> SharedMemory.allocate_region(4096, options) end,
          max_concurrency: 60
        )
        |> Enum.map(fn {:ok, answer} -> answer end)

      assert Enum.count(answers, &match?({:ok, _}, &1)) == 7
      assert Enum.count(answers, &(code(&1) == :resource_exhausted)) == 53
    end)
  end

  test "R2.5 throttled: waits until there is room, in the order of arrival", %{place: place} do
    with_config([max_regions: 1, on_limit: {:throttle, 60_000}], fn ->
      held = SharedMemory.allocate_region!(4096, [name: "held"] ++ place)

      waiters =
        for n <- 1..5 do
          waiter =
            Task.async(fn ->
              id = SharedMemory.allocate_region!(4096, [name: "w#{n}"] ++ place)
              SharedMemory.deallocate_region!(id, place)
              {n, System.monotonic_time()}
            end)

          assert eventually(fn -> waiting() == n end)
          waiter
        end

      SharedMemory.deallocate_region!(held, place)
      order = waiters |> Task.await_many(60_000) |> Enum.sort_by(&elem(&1, 1))
      assert Enum.map(order, &elem(&1, 0)) == [1, 2, 3, 4, 5]
      assert waiting() == 0
    end)
  end

  test "R2.5 throttled: an error when no room was made in time, and nothing is kept", %{
    place: place
  } do
    with_config([max_regions: 1, on_limit: {:throttle, 30}], fn ->
      held = SharedMemory.allocate_region!(4096, place)
      assert {:error, error} = SharedMemory.allocate_region(4096, place)
      assert error.code == :resource_exhausted
      assert error.message =~ "waited 30 ms for room"
      assert waiting() == 0
      assert :sys.get_state(Registry).monitors == %{}
      SharedMemory.deallocate_region!(held, place)
      assert {:ok, _} = SharedMemory.allocate_region(4096, place)
    end)
  end

  test "throttled: what can never fit is refused at once", %{place: place} do
    with_config([max_memory_per_process: 8192, on_limit: {:throttle, 3_600_000}], fn ->
      assert code(SharedMemory.allocate_region(8192, [slots: 2] ++ place)) == :resource_exhausted
      assert waiting() == 0
    end)
  end

  test "throttled: the caller's death takes it out of the queue", %{place: place} do
    with_config([max_regions: 1, on_limit: {:throttle, 3_600_000}], fn ->
      held = SharedMemory.allocate_region!(4096, place)
      first = spawn(fn -> SharedMemory.allocate_region(4096, [name: "first"] ++ place) end)
      assert eventually(fn -> waiting() == 1 end)
      second = Task.async(fn -> SharedMemory.allocate_region(4096, [name: "second"] ++ place) end)
      assert eventually(fn -> waiting() == 2 end)
      kill(first)
      assert eventually(fn -> waiting() == 1 end)
      SharedMemory.deallocate_region!(held, place)
      assert Task.await(second) == {:ok, "second"}
    end)
  end

  test "R12.5 throttled: limits that are raised let in who waits", %{place: place} do
    with_config([max_regions: 1, on_limit: {:throttle, 3_600_000}], fn ->
      SharedMemory.allocate_region!(4096, place)
      waiter = Task.async(fn -> SharedMemory.allocate_region(4096, place) end)
      assert eventually(fn -> waiting() == 1 end)
      {:ok, config} = Config.fetch(:test)
      Config.install(%{config | max_regions: 2})
      assert :ok = GenServer.call(Registry, {:reconfigure, %{config | max_regions: 2}})
      assert {:ok, _} = Task.await(waiter)
    end)
  end

  test "R2.5 throttled: who waits goes on waiting when the registry is killed", %{place: place} do
    with_config([max_regions: 1, on_limit: {:throttle, 3_600_000}], fn ->
      held = SharedMemory.allocate_region!(4096, place)
      test = self()

      waiter =
        Task.async(fn ->
          SharedMemory.allocate_region(4096, [name: "waited", owner: test] ++ place)
        end)

      for _ <- 1..3 do
        assert eventually(fn -> waiting() == 1 end)
        kill(Process.whereis(Registry))
        assert eventually(fn -> Process.whereis(Registry) != nil end)
      end

      assert eventually(fn -> waiting() == 1 end)
      SharedMemory.deallocate_region!(held, place)
      assert Task.await(waiter, 30_000) == {:ok, "waited"}
      assert waiting() == 0
    end)
  end

  test "R2.5 throttled: waiting ends in time, however often the registry is killed", context do
    %{place: place} = context

    with_config([max_regions: 1, on_limit: {:throttle, 300}], fn ->
      SharedMemory.allocate_region!(4096, place)
      waiter = Task.async(fn -> SharedMemory.allocate_region(4096, place) end)
      assert eventually(fn -> waiting() == 1 end)
      kill(Process.whereis(Registry))
      assert {:error, %Error{code: :resource_exhausted} = error} = Task.await(waiter, 30_000)
      assert error.message =~ "waited 300 ms"
    end)
  end

  test "R2.5 throttled: one that can never fit is in nobody's way", %{place: place} do
    limits = [max_regions: 2, max_memory_per_process: 65_536]

    with_config(limits ++ [on_limit: {:throttle, 3_600_000}], fn ->
      options = [slots: 1] ++ place
      [one, two] = for _ <- 1..2, do: SharedMemory.allocate_region!(4096, options)

      # There is no room for a third, but that is not all that stands against it.
      assert {:error, error} = SharedMemory.allocate_region(1_048_576, options)
      assert error.message =~ ":max_memory_per_process"
      assert waiting() == 0

      # With limits that are lowered, those who can never fit by then do not wait either.
      large = Task.async(fn -> SharedMemory.allocate_region(32_768, options) end)
      assert eventually(fn -> waiting() == 1 end)
      small = Task.async(fn -> SharedMemory.allocate_region(4096, options) end)
      assert eventually(fn -> waiting() == 2 end)
      SharedMemory.reconfigure!(max_memory_per_process: 16_384)
      assert {:error, error} = Task.await(large, 30_000)
      assert error.message =~ ":max_memory_per_process"
      assert eventually(fn -> waiting() == 1 end)

      for id <- [one, two], do: SharedMemory.deallocate_region!(id, place)
      assert {:ok, _} = Task.await(small, 30_000)
    end)
  end

  test "R9.5 usage that goes up and down around the line is said once", %{place: place} do
    with_config([max_regions: 10], fn ->
      log =
        ExUnit.CaptureLog.capture_log(fn ->
          options = [slots: 1] ++ place
          for _ <- 1..7, do: SharedMemory.allocate_region!(4096, options)

          for _ <- 1..20 do
            SharedMemory.deallocate_region!(SharedMemory.allocate_region!(4096, options), place)
          end
        end)

      assert length(String.split(log, "limit :max_regions")) == 2
    end)
  end

  test "R9.5 a limit that is near, or reached, is told with a recommendation", %{place: place} do
    Listener.attach(self())
    approached = [:snakepit, :shared_memory, :limit, :approached]
    reached = [:snakepit, :shared_memory, :limit, :reached]

    with_config([max_regions_per_session: 5], fn ->
      options = [session: "s"] ++ place
      [one | _] = for _ <- 1..4, do: SharedMemory.allocate_region!(4096, options)
      assert_receive {:event, ^approached, %{used: 4, maximum: 5}, metadata}, 10_000

      assert %{limit: :max_regions_per_session, scope: {:session, "s"}, unit: :regions} = metadata
      assert metadata.recommendation =~ "raise :max_regions_per_session to 6 or more"

      SharedMemory.allocate_region!(4096, options)
      assert code(SharedMemory.allocate_region(4096, options)) == :resource_exhausted
      assert_receive {:event, ^reached, %{used: 5, maximum: 5}, %{scope: {:session, "s"}}}, 10_000
      # Once a crossing.
      refute_received {:event, ^approached, _, _}
      SharedMemory.deallocate_region!(one, place)
    end)
  end
end
