defmodule Snakepit.SharedMemory.InterruptedTest do
  # What a registry leaves that is killed in the middle of a change: the tables are brought to where
  # they are then, and the registry is killed.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Health, History, Jobs, Registry, Table, Target, Writers}
  alias Snakepit.SharedMemory.Table.Record

  @patience 30_000

  defp key(id, place), do: {place[:dir], place[:namespace], id}
  defp regions, do: :ets.tab2list(:persistent_term.get(:snakepit_shm_regions))

  defp kill_registry do
    assert eventually(fn -> Process.whereis(Registry) != nil end)
    old = Process.whereis(Registry)
    if old, do: kill(old)
    # The next one answers when it has recovered.
    assert eventually(fn -> match?({:ok, _}, Registry.audit(@patience)) end)
  end

  defp consistent? do
    {:ok, audit} = Registry.audit(@patience)
    Health.Bookkeeping.check({:ok, audit}) == []
  end

  defp allocated(place, opts \\ []) do
    id = SharedMemory.allocate_region!(4096, opts ++ place)
    SharedMemory.write!(id, "value", place)
    assert SharedMemory.read!(id, place) == "value"
    id
  end

  describe "R8.3 killed while it takes a region out of its tables" do
    test "before the work is begun: the next one removes it", %{place: place, dir: dir} do
      id = allocated(place)
      region = SharedMemory.map_region!(id, place)
      {%Record{}, {_writer, _reader}} = Table.ending(key(id, place))
      kill_registry()

      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
      assert consistent?()
      assert code(SharedMemory.write(id, "x", place)) == :not_found
      assert code(SharedMemory.deallocate_region(id, place)) == :not_found
      assert {:ok, ^id} = SharedMemory.allocate_region(4096, [name: id] ++ place)
      SharedMemory.unmap_region!(region)
      assert consistent?()
    end

    test "with a writer that has no record any more: it is removed", %{place: place, dir: dir} do
      id = allocated(place)
      :ets.delete(:snakepit_shm_records, key(id, place))
      kill_registry()

      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
      assert Enum.filter(regions(), &match?({{_, _, ^id}, _, _}, &1)) == []
      assert consistent?()
      assert code(SharedMemory.write(id, "x", place)) == :not_found
      assert {:ok, ^id} = SharedMemory.allocate_region(4096, [name: id] ++ place)
    end

    test "with a record that has no writer any more: it is forgotten", %{place: place} do
      id = allocated(place)
      :ets.delete(:persistent_term.get(:snakepit_shm_regions), key(id, place))
      kill_registry()

      assert consistent?()
      assert Table.reservation(key(id, place)) == nil
      # The segment goes with the last who held its writer.
      assert eventually(fn ->
               match?({:ok, _}, SharedMemory.allocate_region(4096, [name: id] ++ place))
             end)
    end

    test "with references and history of a region that has gone: they go too", %{place: place} do
      gone = key("gone", place)
      :ets.insert(:snakepit_shm_references, {{gone, self()}, self(), 2, make_ref()})
      :ets.insert(:snakepit_shm_history_numbers, {gone, 1})
      :ets.insert(:snakepit_shm_history, {{gone, 1}, 1, 0, :allocate, self(), %{}})
      kill_registry()

      assert Table.references(gone) == []
      assert code(History.of("gone", place)) == :not_found
      assert :ets.lookup(:snakepit_shm_history_numbers, gone) == []
      assert consistent?()
    end

    test "again and again while owners of many regions die: none is lost", context do
      %{place: place, dir: dir} = context

      for _ <- 1..15 do
        {_ids, owner} = in_process(fn -> for _ <- 1..60, do: allocated(place, slots: 1) end)
        left = :rand.uniform(60)
        Process.exit(owner, :kill)
        spin(fn -> :ets.info(:snakepit_shm_records, :size) <= left end)
        kill_registry()
      end

      assert eventually(fn -> TestDir.leftovers(dir) == [] end)
      assert Table.records() == []
      assert regions() == []
      assert consistent?()
    end
  end

  # Without a pause: what is waited for lasts microseconds.
  defp spin(condition), do: if(condition.(), do: :ok, else: spin(condition))

  describe "R8.3 killed before it answers a job" do
    # What calls itself the registry does `act` with the writer that it is brought, and dies.
    defp dying(act) do
      spawn(fn ->
        receive do
          {:"$gen_call", _from, {:done, _token, {:ok, writer}}} -> act.(writer)
        end

        Process.exit(self(), :kill)
      end)
    end

    defp done({:ok, job}) do
      monitor = Process.monitor(job)
      assert_receive {:DOWN, ^monitor, :process, ^job, _reason}, @patience
    end

    defp record(id, place, token) do
      target = %Target{
        id: id,
        namespace: place[:namespace],
        dir: place[:dir],
        key: key(id, place)
      }

      %Record{
        target: target,
        size: 4096,
        bytes: 4096,
        slots: 1,
        owner_pid: self(),
        metadata: %{},
        state: :live,
        token: token
      }
    end

    defp taken?(id, place, token) do
      fn -> match?({:ok, %{token: ^token}}, Table.record(key(id, place))) end
    end

    test "a region that is live already keeps its segment", %{place: place} do
      token = make_ref()
      record = record("live", place, token)

      registry =
        dying(fn writer ->
          Table.put_record(record)
          Table.put_region(key("live", place), writer)
        end)

      segment = native(place, "live", %{slots: 1})
      done(Jobs.create(registry, token, segment, taken?("live", place, token)))
      kill_registry()
      assert {:ok, _} = SharedMemory.write("live", "here", place)
      assert SharedMemory.read!("live", place) == "here"
      assert consistent?()
      assert {:ok, "live"} = SharedMemory.deallocate_region("live", place)
    end

    test "one that is not is removed, once", %{place: place, dir: dir} do
      registry = dying(fn _writer -> :ok end)
      segment = native(place, "not-live", %{slots: 1})
      done(Jobs.create(registry, make_ref(), segment, taken?("not-live", place, make_ref())))
      assert TestDir.leftovers(dir) == []
    end

    test "a writer that was taken over stays with who has it", %{place: place} do
      {:ok, writer} = Native.create(native(place, "foreign"))
      {:ok, :ok} = Native.release(writer)
      {key, ref, test} = {key("foreign", place), make_ref(), self()}

      writers =
        dying(fn writer ->
          :ets.insert(:snakepit_shm_writers, {key, test, ref, writer, :taken})
        end)

      taken? = fn -> match?({_, _, ^ref, _, :taken}, Writers.holder(key)) end
      deadline = System.monotonic_time(:millisecond) + @patience
      done(Jobs.take_over(writers, ref, native(place, "foreign"), deadline, taken?))
      assert {:error, {:segment_busy, _, _, _}} = Native.attach_writer(native(place, "foreign"))
      Writers.release(key, ref)
      assert {:ok, writer} = Native.attach_writer(native(place, "foreign"))
      {:ok, :ok} = Native.discard(writer)
    end
  end
end
