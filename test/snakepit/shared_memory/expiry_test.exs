defmodule Snakepit.SharedMemory.ExpiryTest do
  # Changes the default timeout for the whole application, and kills what watches it.
  use Snakepit.SharedMemory.Case, async: false

  alias Snakepit.SharedMemory.{Expiry, Foreign, Listener, Registry}

  defp ids(place), do: Enum.map(SharedMemory.list_regions!(place), & &1.id)

  test "R2.2 the configured default timeout is for regions that say nothing else", %{place: place} do
    Listener.attach(self())

    with_config([default_timeout: 20], fn ->
      SharedMemory.allocate_region!(4096, [name: "stays", timeout: nil] ++ place)
      SharedMemory.allocate_region!(4096, [name: "longer", timeout: 3_600_000] ++ place)
      SharedMemory.allocate_region!(4096, [name: "goes", slots: 2] ++ place)
      SharedMemory.share!("goes too", [name: "shared"] ++ place)

      expired = [:snakepit, :shared_memory, :cleanup, :expired]

      for {id, bytes} <- [{"goes", 8192}, {"shared", 4096}] do
        assert_receive {:event, ^expired, %{bytes: ^bytes}, %{region: ^id, reason: :idle}}, 10_000
      end

      assert eventually(fn -> ids(place) == ["longer", "stays"] end)
      for id <- ids(place), do: SharedMemory.deallocate_region!(id, place)
    end)
  end

  test "killed, it goes on where it was; what is in use stays", %{place: place} do
    used = SharedMemory.allocate_region!(4096, [name: "used", timeout: 50] ++ place)
    region = SharedMemory.map_region!(used, place)

    for n <- 1..5 do
      SharedMemory.allocate_region!(4096, [name: "idle#{n}", timeout: 50] ++ place)
      old = Process.whereis(Expiry)
      kill(old)
      assert eventually(fn -> Process.whereis(Expiry) not in [nil, old] end)
    end

    assert eventually(fn -> ids(place) == ["used"] end)
    SharedMemory.unmap_region!(region)
    assert eventually(fn -> ids(place) == [] end)
    assert eventually(fn -> :sys.get_state(Expiry).seen == %{} end)
  end

  test "R3.4 a region that another OS process reads is not idle", %{place: place} do
    peer = Foreign.start([cleanup_interval: 3_600_000] ++ place)
    SharedMemory.allocate_region!(4096, [name: "read", timeout: 100] ++ place)

    assert {:ok, %{id: "read"}} = Foreign.run(peer, ~s|Snakepit.SharedMemory.map_region("read")|)

    SharedMemory.allocate_region!(4096, [name: "idle", timeout: 200] ++ place)
    assert eventually(fn -> ids(place) == ["read"] end)
    Foreign.kill(peer)
    assert eventually(fn -> ids(place) == [] end)
  end

  test "what was seen does not hold any more: the registry keeps the region", %{place: place} do
    id = SharedMemory.allocate_region!(4096, [name: "kept"] ++ place)
    key = {place[:dir], place[:namespace], id}
    {:ok, %{token: token}} = Snakepit.SharedMemory.Table.record(key)
    assert Registry.expire(key, {:idle, make_ref(), 0}) == :kept
    assert Registry.expire(key, {:idle, token, 1}) == :kept
    assert Registry.expire(key, {:mark, 0}) == :kept
    assert Registry.expire({place[:dir], place[:namespace], "nobody"}, {:mark, 0}) == :kept
    region = SharedMemory.map_region!(id, place)
    assert Registry.expire(key, {:idle, token, 0}) == :kept
    SharedMemory.unmap_region!(region)
    SharedMemory.read(id, place)
    # The reader for reads by id is one that came after the look.
    assert Registry.expire(key, {:idle, token, 0}) == :kept
    assert Registry.drop_reader(key)
    assert Registry.expire(key, {:idle, token, 0}) == :removed
    assert eventually(fn -> ids(place) == [] end)
  end
end
