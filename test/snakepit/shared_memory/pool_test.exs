defmodule Snakepit.SharedMemory.PoolTest do
  # The pool is of the configured place, which is this test's own while it runs.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Config, Pool}

  @mib 1024 * 1024

  setup %{place: place} do
    before = Application.get_env(:snakepit, :shared_memory)
    restart(place)
    on_exit(fn -> restart(before) end)
    :ok
  end

  defp pool, do: SharedMemory.stats!().pool
  defp bytes(byte, size), do: :binary.copy(<<byte>>, size)
  defp pool_files(dir), do: Enum.filter(File.ls!(dir), &(&1 =~ ".pool."))

  test "R9.4 a region that ends leaves its memory to the next", %{dir: dir} do
    inodes =
      for n <- 1..5 do
        handle = SharedMemory.share!(bytes(n, 3 * @mib))
        assert SharedMemory.fetch!(handle) == bytes(n, 3 * @mib)
        %{file: file} = SharedMemory.get_region_info!(handle["name"]).platform_handle
        inode = File.stat!(Path.join(dir, file)).inode
        :erlang.garbage_collect()
        assert SharedMemory.deallocate_region!(handle) == handle["name"]
        assert code(SharedMemory.fetch(handle)) == :not_found
        inode
      end

    # The binary of the one before may not be collected yet: then there are two.
    assert length(Enum.uniq(inodes)) <= 2
    assert %{reused: reused, live: 0, idle: idle} = pool()
    assert reused >= 3 and idle >= 1
    assert [_ | _] = pool_files(dir)
    Application.stop(:snakepit_shared_memory)
    assert pool_files(dir) == []
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
  end

  test "a zero-copy binary stays as it is, whatever becomes of its region" do
    kept =
      for n <- 1..20 do
        handle = SharedMemory.share!(bytes(n, @mib))

        by =
          if rem(n, 2) == 0, do: &SharedMemory.fetch!/1, else: &SharedMemory.binary!(&1["name"])

        binary = by.(handle)
        SharedMemory.deallocate_region!(handle)
        {n, binary}
      end

    for _ <- 1..20, do: SharedMemory.deallocate_region!(SharedMemory.share!(bytes(0xEE, @mib)))
    for {n, binary} <- kept, do: assert(binary == bytes(n, @mib))
  end

  test "memory goes from one session to another only zeroed", %{dir: dir} do
    used = fn session, size ->
      id = SharedMemory.allocate_region!(@mib, slots: 1, session: session)
      SharedMemory.write!(id, bytes(0x5A, size))
      %{file: file} = SharedMemory.get_region_info!(id).platform_handle
      raw = File.read!(Path.join(dir, file))
      SharedMemory.deallocate_region!(id)
      :binary.matches(raw, bytes(0x5A, 64)) |> length()
    end

    full = used.("a", @mib)
    assert used.("a", 64) == full
    assert used.("b", 64) == 1
    SharedMemory.reconfigure!(pool_zero: :never)
    assert used.("b", @mib) == full
    assert used.("a", 64) == full
    SharedMemory.reconfigure!(pool_zero: :always)
    assert used.("a", 64) == 1
  end

  test "R9.4 defragment gives back what no region needs", %{dir: dir} do
    big = SharedMemory.allocate_region!(8 * @mib, slots: 1)
    other = SharedMemory.allocate_region!(2 * @mib, slots: 1)
    for id <- [big, other], do: SharedMemory.deallocate_region!(id)
    id = SharedMemory.allocate_region!(5 * @mib, slots: 1)
    SharedMemory.write!(id, bytes(7, 5 * @mib))
    assert %{idle: 1, reused: 1, fragmentation: part} = pool()
    assert part > 0.4

    # What is done now and then where it is configured: what is idle stays.
    {:ok, config} = Config.fetch(:test)
    assert Pool.tidy(config) == :ok
    assert %{idle: 1, live_bytes: live, needed_bytes: needed} = pool()
    assert live > needed
    assert Pool.tidy(%{config | enable_defragmentation: true}) == :ok
    assert %{idle: 1, live_bytes: ^needed, needed_bytes: ^needed} = pool()

    assert SharedMemory.defragment!() >= 2 * @mib
    assert %{idle: 0, fragmentation: zero} = pool()
    assert zero == 0.0
    assert pool_files(dir) == []
    assert SharedMemory.read!(id) == bytes(7, 5 * @mib)
    assert SharedMemory.defragment() == {:ok, 0}
  end

  test "R14.5 pool_max_bytes, pool_idle_timeout, allocation_strategy", %{dir: dir} do
    end_one = fn size ->
      SharedMemory.deallocate_region!(SharedMemory.allocate_region!(size, slots: 1))
    end

    end_one.(@mib)
    assert [_] = pool_files(dir)
    SharedMemory.reconfigure!(pool_max_bytes: 0)
    assert pool_files(dir) == []
    end_one.(@mib)
    assert pool_files(dir) == []

    SharedMemory.reconfigure!(pool_max_bytes: 512 * @mib, pool_idle_timeout: 20)
    end_one.(@mib)
    assert eventually(fn -> pool_files(dir) == [] end)

    SharedMemory.reconfigure!(pool_idle_timeout: 30_000)
    rooms = fn -> for file <- pool_files(dir), do: File.stat!(Path.join(dir, file)).size end

    for {strategy, left} <- [best_fit: [6, 7], worst_fit: [5, 6], first_fit: [6, 7]] do
      SharedMemory.defragment!()
      SharedMemory.reconfigure!(allocation_strategy: strategy)
      ids = for n <- [7, 6, 5], do: SharedMemory.allocate_region!(n * @mib, slots: 1)
      for id <- ids, do: SharedMemory.deallocate_region!(id)
      id = SharedMemory.allocate_region!(4 * @mib, slots: 1)
      assert rooms.() |> Enum.map(&div(&1, @mib)) |> Enum.sort() == left
      SharedMemory.deallocate_region!(id)
    end
  end

  test "a region elsewhere, or that others may read, takes no part", %{place: place, dir: dir} do
    for options <- [[permissions: 0o640], [reserve: :lazy], [namespace: "other", dir: dir]] do
      id = SharedMemory.allocate_region!(@mib, [slots: 1] ++ options)
      SharedMemory.deallocate_region!(id, Keyword.take(options, [:namespace, :dir]))
    end

    assert %{idle: 0, fresh: 0} = pool()
    assert pool_files(dir) == []
    assert place[:dir] == dir
  end
end
