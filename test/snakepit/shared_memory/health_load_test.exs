defmodule Snakepit.SharedMemory.HealthLoadTest do
  # The health check while much goes on, and while it cannot get on. Alone: it suspends processes of
  # the application.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Expiry, Health, Janitor, Membership, Registry, Target, Writers}
  alias Snakepit.SharedMemory.Health.Segments

  test "R13.4 regions that come and go all the time are no finding", %{place: place} do
    worked = :counters.new(1, [])
    workers = for _ <- 1..6, do: spawn(fn -> work(place, worked) end)
    crowd = spawn(fn -> owners_that_die(place) end)

    for _ <- 1..50 do
      assert SharedMemory.health_check!([timeout: 60_000] ++ place).findings == []
    end

    assert :counters.get(worked, 1) > 50
    Enum.each([crowd | workers], &kill/1)
  end

  defp work(place, worked) do
    id = SharedMemory.allocate_region!(4096, [slots: 1] ++ place)
    region = SharedMemory.map_region!(id, place)
    SharedMemory.write!(region, "value")
    if :rand.uniform(2) == 1, do: SharedMemory.unmap_region!(region)
    SharedMemory.deallocate_region!(id, place)
    :counters.add(worked, 1, 1)
    work(place, worked)
  end

  defp owners_that_die(place) do
    {pid, monitor} =
      spawn_monitor(fn ->
        for _ <- 1..5, do: place |> allocate() |> SharedMemory.map_region!(place)
      end)

    receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> owners_that_die(place))
  end

  defp allocate(place), do: SharedMemory.allocate_region!(4096, [slots: 1] ++ place)

  test "R13.4 what is there in one look only is not reported" do
    looks = :counters.new(1, [])

    look = fn ->
      :counters.add(looks, 1, 1)
      if :counters.get(looks, 1) == 1, do: [:passing, :staying], else: [:new, :staying]
    end

    assert Health.confirmed(look, & &1) == [:staying]
    assert Health.confirmed(fn -> [] end, & &1) == []
  end

  test "R13.4 a namespace that cannot be listed", %{place: place} do
    nowhere = struct!(Target, [id: "", key: ""] ++ Keyword.put(place, :dir, "/no/such/directory"))
    listed = Native.list(nowhere.namespace, nowhere.dir)

    assert [%{check: :segments, severity: :critical} = finding] =
             Segments.check({:ok, %{records: [], mappings: []}}, listed, nowhere)

    assert finding.message =~ "cannot be listed"
    assert is_binary(finding.remedy)
  end

  test "R13.4 it ends within its timeout, however many processes do not answer", %{place: place} do
    busy = [Registry, Expiry, Membership, Janitor, Writers]
    for process <- busy, do: hold(process)

    try do
      report = SharedMemory.health_check!([timeout: 1_000] ++ place)
      assert report.status == :critical
      # Each would take a second by itself.
      assert report.duration_us < 3_000_000

      for process <- busy do
        assert Enum.any?(report.findings, &(&1.message == "#{inspect(process)} does not answer"))
      end

      for check <- [:bookkeeping, :segments, :limits] do
        assert Enum.any?(report.findings, &(&1.check == check and &1.message =~ "could not be"))
      end
    after
      for process <- busy, do: :erlang.resume_process(Process.whereis(process))
    end

    assert %{findings: []} = SharedMemory.health_check!([timeout: 60_000] ++ place)
    assert {:messages, []} = Process.info(self(), :messages)
  end

  defp hold(process), do: :erlang.suspend_process(Process.whereis(process))
end
