defmodule Snakepit.SharedMemory.WholeVmTest do
  # What is counted here belongs to the whole VM, so nothing else may run.
  use Snakepit.SharedMemory.Case, async: false

  @moduletag timeout: 300_000

  @big 100_000_000

  test "no subscriber has a thread of its own, and nobody waits when they are gone", %{
    place: place
  } do
    id = SharedMemory.allocate_region!(4096, place)
    assert eventually(fn -> threads("shm-notifier") == 0 end)

    subscribers =
      for _ <- 1..50 do
        {_ref, pid} = in_process(fn -> SharedMemory.subscribe!(id, place) end)
        pid
      end

    # A thread takes its name when it first runs.
    assert eventually(fn -> {threads("shm-notifier"), threads("shm-subscribe")} == {1, 1} end)
    Enum.each(subscribers, &kill/1)
    assert eventually(fn -> threads("shm-notifier") == 0 end)
  end

  test "R5.2 a sealed 100 MB region read as a binary adds no memory to the VM, and its mapping goes with the last binary",
       %{place: place, dir: dir} do
    # Shared by another process, so that this VM's only mappings are the owner's and the binary's.
    {handle, owner} = in_process(fn -> SharedMemory.share!(pattern(), place) end)
    owned = length(mappings(dir))

    before = memory_at_rest()
    reader = start_reader(handle, dir)
    assert {:sum, sum} = ask(reader, :sum)
    assert sum == sum(pattern())
    collect()

    assert length(mappings(dir)) > owned
    grown = memory() - before
    assert grown < 5_000_000, "grew by #{grown} bytes"

    # A sub-binary keeps the mapping, its end lets it go.
    assert :kept = ask(reader, :keep_part)
    collect()
    assert length(mappings(dir)) > owned
    assert :dropped = ask(reader, :drop_part)
    assert eventually(fn -> length(mappings(dir)) == owned end)

    kill(owner)
    assert eventually(fn -> mappings(dir) == [] end)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    kill(reader)
  end

  test "a binary outlives its region and its owner", %{place: place, dir: dir} do
    {handle, owner} = in_process(fn -> SharedMemory.share!(pattern(), place) end)
    binary = SharedMemory.fetch!(handle, dir: dir)
    kill(owner)
    assert eventually(fn -> TestDir.leftovers(dir) == [] end)
    assert mappings(dir) != []
    assert sum(binary) == sum(pattern())
  end

  test "R5.2 reading a large value copies it once, and unmapping gives its memory back", %{
    place: place,
    dir: dir
  } do
    {id, owner} =
      in_process(fn ->
        id = SharedMemory.allocate_region!(104_857_600, [slots: 1] ++ place)
        SharedMemory.write!(id, pattern(), place)
        id
      end)

    before = memory_at_rest()
    region = SharedMemory.map_region!(id, place)
    assert memory() - before < 5_000_000

    value = SharedMemory.read!(region)
    grown = memory() - before
    # Other processes come and go meanwhile; a second copy would show as another 100 MB.
    assert abs(grown - @big) < 10_000_000, "grew by #{grown} bytes"
    assert sum(value) == sum(pattern())

    SharedMemory.unmap_region!(region)
    kill(owner)
    assert eventually(fn -> mappings(dir) == [] end)
  end

  test "iodata is written without being flattened", %{place: place} do
    id = SharedMemory.allocate_region!(104_857_600, [slots: 1] ++ place)
    half = :binary.copy("x", div(@big, 2))
    memory_at_rest()
    peak = watch_memory(fn -> SharedMemory.write!(id, [half, ["-" | half]], place) end)
    assert peak < 10_000_000, "grew by #{peak} bytes"
    assert SharedMemory.get_region_info!(id, place).bytes == 2 * byte_size(half) + 1
  end

  @tag patience: 120_000
  test "R12.1 10,000 regions take one descriptor, are found and counted each, and leave nothing",
       %{place: place, dir: dir} do
    options = [slots: 1, reserve: :lazy, max_readers: 1] ++ place

    with_config([max_regions: 10_001], fn ->
      # The namespace's one descriptor is there from the first region on.
      SharedMemory.allocate_region!(4096, [name: "first"] ++ options)
      descriptors = descriptors()

      {ids, owner} =
        in_process(fn ->
          for n <- 1..10_000, do: SharedMemory.allocate_region!(4096, [name: "r#{n}"] ++ options)
        end)

      assert code(SharedMemory.allocate_region(4096, options)) == :resource_exhausted
      numbered = Enum.with_index(ids)

      for {id, n} <- numbered do
        assert SharedMemory.write!(id, <<n::32>>, place) == 2
        assert %{version: 2, bytes: 4} = SharedMemory.get_region_info!(id, place)
      end

      for {id, n} <- numbered, do: assert(SharedMemory.read!(id, place) == <<n::32>>)

      # Four areas each, of the 65,530 that a process may have; one more when neighbours are apart.
      areas = length(mappings(dir))
      assert areas < 50_000

      {regions, holder} =
        in_process(fn -> Enum.map(ids, &SharedMemory.map_region!(&1, place)) end)

      for {region, {_id, n}} <- Enum.zip(regions, numbered) do
        assert SharedMemory.read!(region) == <<n::32>>
      end

      assert length(mappings(dir)) == areas
      assert descriptors() <= descriptors + 1

      listed = SharedMemory.list_regions!([owner: owner] ++ place)
      assert length(listed) == 10_000
      assert Enum.all?(listed, &match?(%{reference_count: 2, reader_count: 1}, &1))
      assert {:ok, %{findings: findings}} = SharedMemory.health_check([timeout: 30_000] ++ place)
      # The limit is reached, and perhaps the machine is busy or its memory full.
      assert Enum.filter(findings, &(&1.check in [:bookkeeping, :segments, :orphans])) == []

      kill(holder)
      count = &SharedMemory.get_region_info!(&1, place).reference_count
      assert eventually(fn -> Enum.all?(ids, &(count.(&1) == 1)) end)
      kill(owner)
      assert eventually(fn -> length(TestDir.leftovers(dir)) == 2 end, 120_000)
      assert [%{id: "first"}] = SharedMemory.list_regions!(place)
      SharedMemory.deallocate_region!("first", place)
      assert eventually(fn -> mappings(dir) == [] end)
      assert descriptors() <= descriptors
    end)
  end

  defp descriptors, do: length(File.ls!("/proc/self/fd"))

  # Bytes that are not all the same, without keeping 100 MB of them in a test's heap.
  defp pattern, do: :binary.copy(:binary.list_to_bin(Enum.to_list(0..249)), div(@big, 250))

  defp sum(binary), do: :erlang.crc32(binary)

  defp memory, do: :erlang.memory(:binary) + :erlang.memory(:processes)

  defp collect, do: Enum.each(Process.list(), &:erlang.garbage_collect/1)

  # What is in use once the large values of earlier tests and helpers have been collected.
  defp memory_at_rest do
    assert eventually(fn ->
             collect()
             memory() < @big
           end)

    memory()
  end

  # The largest growth that a busy watcher saw while `fun` ran.
  defp watch_memory(fun) do
    before = memory()
    watcher = Task.async(fn -> watch(before, 0) end)
    fun.()
    send(watcher.pid, :enough)
    Task.await(watcher)
  end

  defp watch(before, peak) do
    peak = max(peak, memory() - before)

    receive do
      :enough -> peak
    after
      0 -> watch(before, peak)
    end
  end

  defp start_reader(handle, dir) do
    spawn(fn ->
      binary = SharedMemory.fetch!(handle, dir: dir)
      serve(binary, nil)
    end)
  end

  defp serve(binary, part) do
    receive do
      {:sum, from} ->
        send(from, {:sum, sum(binary)})
        serve(binary, part)

      {:keep_part, from} ->
        part = binary_part(binary, 1000, 10_000)
        :erlang.garbage_collect()
        send(from, :kept)
        serve(nil, part)

      {:drop_part, from} ->
        send(from, :dropped)
        forget()
    end
  end

  # A new frame, from which the part cannot be reached.
  defp forget do
    :erlang.garbage_collect()
    receive do: (:never -> :ok)
  end

  defp ask(pid, question) do
    send(pid, {question, self()})

    receive do
      answer -> answer
    after
      30_000 -> flunk("no answer to #{question}")
    end
  end
end
