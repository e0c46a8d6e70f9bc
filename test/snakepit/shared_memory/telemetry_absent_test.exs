defmodule Snakepit.SharedMemory.TelemetryAbsentTest do
  # A VM that has nothing but OTP, Elixir and this library, whatever this one has.
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.Foreign

  @everything """
  alias Snakepit.SharedMemory
  id = SharedMemory.allocate_region!(4096, session: "s")
  region = SharedMemory.map_region!(id)
  2 = SharedMemory.write!(region, "one")
  "one" = SharedMemory.read!(region)
  "one" = SharedMemory.read!(id)
  SharedMemory.unsubscribe!(SharedMemory.subscribe!(region))
  :held = SharedMemory.with_writer!(region, fn _region -> :held end)
  SharedMemory.seal!(region)
  "one" = SharedMemory.binary!(region)
  SharedMemory.unmap_region!(region)
  [%{id: ^id}] = SharedMemory.list_regions!()
  [%{operation: :allocate} | _] = SharedMemory.history!(id)
  %{removed: [^id]} = SharedMemory.release_session!("s")
  handle = SharedMemory.share!("two")
  "two" = SharedMemory.fetch!(handle)
  SharedMemory.deallocate_region!(handle)
  SharedMemory.cleanup_regions!()
  {:error, %{code: :not_found}} = SharedMemory.read("nobody")
  {:error, %{code: :invalid_size}} = SharedMemory.allocate_region(-1)
  {:ok, _} = SharedMemory.reconfigure(max_regions: 1)
  kept = SharedMemory.allocate_region!(4096)
  {:error, %{code: :resource_exhausted}} = SharedMemory.allocate_region(4096)
  SharedMemory.deallocate_region!(kept)
  {:ok, %{findings: findings}} = SharedMemory.health_check()
  [] = Enum.filter(findings, &(&1.severity == :critical))
  %{operations: %{read: %{count: 2, errors: %{not_found: 1}}}} = SharedMemory.stats!()
  SharedMemory.recommendations!()
  :done
  """

  test "R10.3 without :telemetry every call works, and nothing is emitted", %{place: place} do
    peer = Foreign.start(place, [:telemetry])
    assert Foreign.run(peer, ":code.which(:telemetry)") == :non_existing
    refute Foreign.run(peer, "Snakepit.SharedMemory.Telemetry.enabled?()")
    assert Foreign.run(peer, @everything) == :done
    # An event that was emitted all the same would have been a call of an undefined function.
    refute Foreign.run(peer, ":erlang.module_loaded(:telemetry)")
    Foreign.stop(peer)
  end

  # What a missing module usually costs: the code server looks for it in each call, for ever.
  @looks """
  alias Snakepit.SharedMemory
  id = SharedMemory.allocate_region!(4096)
  region = SharedMemory.map_region!(id)

  calls = fn ->
    SharedMemory.write!(region, "value")
    SharedMemory.read!(region)
    SharedMemory.read!(id)
    SharedMemory.get_region_info!(id)
    SharedMemory.unmap_region!(SharedMemory.map_region!(id))
    SharedMemory.deallocate_region!(SharedMemory.allocate_region!(4096))
  end

  # The first time loads what there is.
  calls.()
  1 = :erlang.trace(Process.whereis(:code_server), true, [:receive])
  for _ <- 1..100, do: calls.()
  asked = fn asked, found ->
    receive do
      {:trace, _, :receive, message} -> asked.(asked, [message | found])
    after
      0 -> found
    end
  end
  :erlang.trace_delivered(Process.whereis(:code_server))
  receive(do: ({:trace_delivered, _, _} -> :ok))
  asked = asked.(asked, [])
  1 = :erlang.trace(Process.whereis(:code_server), false, [:receive])
  SharedMemory.deallocate_region!(id)
  asked
  """

  test "R10.3 without :telemetry no call looks for it", %{place: place} do
    peer = Foreign.start(place, [:telemetry])
    assert Foreign.run(peer, @looks) == []
    Foreign.stop(peer)
  end

  # Every function that would emit is called 1,000 times, and none goes beyond asking whether to.
  @ways """
  alias Snakepit.SharedMemory
  id = SharedMemory.allocate_region!(4096)
  region = SharedMemory.map_region!(id)
  :erlang.trace(self(), true, [:call])
  for name <- [:traced, :since] do
    1 = :erlang.trace_pattern({SharedMemory.Telemetry, name, :_}, true, [:local, :call_count])
  end

  for _ <- 1..1000 do
    SharedMemory.write!(region, "value")
    SharedMemory.read!(region)
    SharedMemory.read!(id)
  end

  counted = fn name, arity ->
    :erlang.trace_info({SharedMemory.Telemetry, name, arity}, :call_count)
  end

  answer = {counted.(:traced, 4), counted.(:since, 1)}
  SharedMemory.deallocate_region!(id)
  answer
  """

  test "R10.3 without :telemetry reads and writes take no way to an event", %{place: place} do
    peer = Foreign.start(place, [:telemetry])
    assert Foreign.run(peer, @ways) == {{:call_count, 0}, {:call_count, 0}}
    Foreign.stop(peer)
  end
end
