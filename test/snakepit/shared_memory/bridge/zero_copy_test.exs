defmodule Snakepit.SharedMemory.Bridge.ZeroCopyTest do
  # Snakepit's own references.
  use Snakepit.SharedMemory.Case, async: false

  import Snakepit.SharedMemory.Transport

  alias Snakepit.SharedMemory.Bridge

  defp with_ref(fun) do
    fields = ~w(kind device dtype shape owner ref copy bytes metadata)a |> Enum.map(&{&1, nil})

    body = quote(do: defstruct(unquote(fields)))
    Module.create(Snakepit.ZeroCopyRef, body, Macro.Env.location(__ENV__))

    try do
      fun.()
    after
      :code.purge(Snakepit.ZeroCopyRef)
      :code.delete(Snakepit.ZeroCopyRef)
      :code.purge(Snakepit.ZeroCopyRef)
    end
  end

  # As Snakepit's own to_map/1 writes it.
  defp to_map(ref) do
    encoded = ref.ref |> :erlang.term_to_binary() |> Base.encode64()

    for {key, value} <- Map.from_struct(ref), into: %{"__snakepit_zero_copy__" => true} do
      value = if key in [:kind, :device, :owner], do: Atom.to_string(value), else: value
      {Atom.to_string(key), if(key == :ref, do: encoded, else: value)}
    end
  end

  test "carries a handle there and back, as a struct and as a map", %{place: place} do
    handle = SharedMemory.share!(large(), [dtype: :u8, shape: [50, 100]] ++ place)

    with_ref(fn ->
      assert {:ok, ref} = Bridge.to_zero_copy_ref(handle)
      assert %{kind: :dlpack, device: :cpu, owner: :elixir, copy: false, bytes: 5000} = ref
      assert %{dtype: "|u1", shape: [50, 100]} = ref
      assert is_reference(ref.ref)
      assert Bridge.from_zero_copy_ref(ref) == {:ok, handle}
      assert Bridge.from_zero_copy_ref(to_map(ref)) == {:ok, handle}
      # As Snakepit's own code writes types and shapes.
      assert Bridge.from_zero_copy_ref(%{ref | shape: {50, 100}, dtype: :u8}) == {:ok, handle}
      assert Bridge.from_zero_copy_ref(%{ref | dtype: "uint8"}) == {:ok, handle}

      for lie <- [
            %{bytes: 1},
            %{shape: [5000]},
            %{dtype: :f32},
            %{metadata: %{}},
            %{metadata: nil}
          ] do
        assert code(Bridge.from_zero_copy_ref(Map.merge(ref, lie))) == :invalid_handle
      end

      table = %{handle | "format" => "arrow_ipc"}
      assert {:ok, %{kind: :arrow}} = Bridge.to_zero_copy_ref(table)
      assert code(Bridge.to_zero_copy_ref(%{})) == :invalid_handle
    end)

    SharedMemory.deallocate_region!(handle, dir: place[:dir])
  end

  test "in a result is what its handle names", %{place: place} do
    reference = fn handle, changes ->
      told = %{"bytes" => 5000, "shape" => [5000], "metadata" => %{"snakepit_shm" => handle}}

      Map.merge(
        %{"__snakepit_zero_copy__" => true, "kind" => "dlpack"},
        Map.merge(told, changes)
      )
    end

    {handle, _} = give(large(), place)
    tool = fn _, _ -> {:ok, [reference.(handle, %{})]} end
    assert {:ok, [^handle]} = call(%{}, place, tool, resolve: false)
    SharedMemory.deallocate_region!(handle, dir: place[:dir])

    {handle, _} = give(large(), place)
    assert call(%{}, place, fn _, _ -> {:ok, [reference.(handle, %{})]} end) == {:ok, [large()]}
    assert SharedMemory.list_regions!(place) == []

    for other <- [%{"metadata" => nil}, %{"metadata" => %{"snakepit_shm" => 1}}] do
      plain = reference.(nil, other)
      assert call(%{}, place, fn _, _ -> {:ok, plain} end) == {:ok, plain}
    end
  end

  test "is a named error without Snakepit" do
    handle = %{"__snakepit_shm__" => 1, "bytes" => 1}
    assert code(Bridge.to_zero_copy_ref(handle)) == :unsupported
    assert code(Bridge.from_zero_copy_ref(:nothing)) == :invalid_handle
  end
end
