defmodule Snakepit.SharedMemory.GuardTest do
  # A file that is cut while the VM has it mapped would kill an ordinary process with SIGBUS.
  use Snakepit.SharedMemory.Case, async: true

  @size 1024 * 1024

  defp cut(path), do: File.write!(path, "")

  # One handed-out binary, whose file has been cut to nothing.
  defp cut_binary(place) do
    handle = SharedMemory.share!(:binary.copy(<<7>>, @size), place)
    binary = SharedMemory.fetch!(handle, dir: place[:dir])
    assert :binary.at(binary, @size - 1) == 7
    cut(file_of(handle["name"], place))
    {handle, binary}
  end

  # What the system had loaded stays or reads as zero; nothing else is ever seen.
  defp plausible?(byte), do: byte in [0, 7]

  test "a byte of it is read", %{place: place} do
    {_handle, binary} = cut_binary(place)
    assert plausible?(:binary.at(binary, 0))
    assert plausible?(:binary.at(binary, div(@size, 2)))
    assert plausible?(:binary.at(binary, @size - 1))
  end

  test "compiled code walks it", %{place: place} do
    {_handle, binary} = cut_binary(place)
    bytes = for <<byte <- binary>>, reduce: 0, do: (count -> count + if(plausible?(byte), do: 1))
    assert bytes == @size
    assert Enum.sum(for <<byte <- binary>>, do: byte) in 0..(7 * @size)
  end

  test "C code of OTP walks it", %{place: place} do
    {_handle, binary} = cut_binary(place)
    assert byte_size(:crypto.hash(:sha256, binary)) == 32
    assert is_integer(:erlang.crc32(binary))
    assert :binary.match(binary, "absent") == :nomatch
    copied = :binary.copy(binary)
    assert copied == binary
    assert byte_size(:erlang.term_to_binary(binary, [:compressed])) > 0
  end

  test "it is sent to another process, and written to a file", %{place: place, dir: dir} do
    {_handle, binary} = cut_binary(place)

    task =
      Task.async(fn ->
        receive do: ({:binary, received} -> for(<<byte <- received>>, do: byte))
      end)

    send(task.pid, {:binary, binary})
    assert Enum.all?(Task.await(task, 30_000), &plausible?/1)

    copy = Path.join(dir, "copy")
    # The kernel copies here, and may say that the memory is bad.
    assert File.write(copy, binary) in [:ok, {:error, :efault}]
    File.rm!(copy)
  end

  test "the next call says truncated, and the region can be removed", %{place: place, dir: dir} do
    {handle, binary} = cut_binary(place)
    assert plausible?(:binary.at(binary, 1))
    id = handle["name"]
    assert code(SharedMemory.binary(id, place)) == :truncated
    assert code(SharedMemory.fetch(handle, dir: dir)) == :truncated
    assert code(SharedMemory.read(handle, dir: dir)) == :truncated
    assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)
    assert TestDir.leftovers(dir) == []
    # What was handed out outlives even this.
    assert plausible?(:binary.at(binary, 2))
  end

  test "held mappings of a live value say truncated", %{place: place} do
    id = SharedMemory.allocate_region!(65_536, place)
    region = SharedMemory.map_region!(id, place)
    SharedMemory.write!(region, :binary.copy("x", 65_536))
    assert byte_size(SharedMemory.read!(region)) == 65_536
    cut(file_of(id, place))

    assert code(SharedMemory.read(region)) == :truncated
    assert code(SharedMemory.read(region, offset: 60_000)) == :truncated
    assert code(SharedMemory.write(region, :binary.copy("y", 65_536))) == :truncated
    assert code(SharedMemory.read(id, place)) == :truncated
    assert {:ok, ^id} = SharedMemory.unmap_region(region)
    assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)
  end

  test "a subscriber is told, and one that ends its subscription does not hang", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    ref = SharedMemory.subscribe!(id, place)
    other = SharedMemory.subscribe!(id, place)
    cut(file_of(id, place))
    assert {:ok, ^other} = SharedMemory.unsubscribe(other)
    assert_receive {:snakepit_shm, ^ref, {:closed, ^id, :truncated}}, 30_000
    assert {:ok, ^id} = SharedMemory.deallocate_region(id, place)
  end
end
