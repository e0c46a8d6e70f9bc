defmodule Snakepit.SharedMemory.TensorTest do
  # With a stand-in for Nx: what is used of it, and no more. Alone, for others are to find no Nx.
  use Snakepit.SharedMemory.Case, async: false

  setup context do
    unless context[:without] do
      # Anew for each test, so that the ones without are without.
      modules = for {module, _} <- Code.compile_file("test/support/nx.exs"), do: module
      on_exit(fn -> Enum.each(modules, &unload/1) end)
    end

    :ok
  end

  defp unload(module) do
    :code.delete(module)
    :code.purge(module)
  end

  alias Snakepit.SharedMemory.Tensor

  # Not known when this is compiled.
  defp nx(function, arguments), do: apply(Nx, function, arguments)

  defp tensor(binary, type, shape) do
    nx(:reshape, [nx(:from_binary, [binary, type, []]), shape])
  end

  test "a tensor comes back with its type and shape", %{place: place} do
    for {type, dtype, bytes} <- [
          {{:u, 8}, "|u1", 1},
          {{:s, 8}, "|i1", 1},
          {{:u, 16}, "<u2", 2},
          {{:s, 32}, "<i4", 4},
          {{:u, 64}, "<u8", 8},
          {{:f, 16}, "<f2", 2},
          {{:f, 32}, "<f4", 4},
          {{:f, 64}, "<f8", 8},
          {{:c, 64}, "<c8", 8},
          {{:c, 128}, "<c16", 16}
        ],
        shape <- [{}, {1}, {2, 3}, {1, 2, 3, 1}] do
      data = :rand.bytes(bytes * Tuple.product(shape))
      handle = SharedMemory.share!(tensor(data, type, shape), place)
      assert %{"dtype" => ^dtype, "format" => "numpy"} = handle
      assert handle["shape"] == Tuple.to_list(shape)
      back = SharedMemory.fetch!(handle, [as: :tensor] ++ place)
      assert {nx(:type, [back]), nx(:shape, [back])} == {type, shape}
      assert nx(:to_binary, [back]) == data
      SharedMemory.deallocate_region!(handle, place)
      assert nx(:to_binary, [back]) == data
    end
  end

  test "a tensor of what was fetched lies in shared memory", %{place: place, dir: dir} do
    data = :rand.bytes(1_000_000)
    handle = SharedMemory.share!(data, [dtype: :f32, shape: [500, 500]] ++ place)
    before = :erlang.memory(:binary)
    back = SharedMemory.fetch!(handle, [as: :tensor] ++ place)
    assert nx(:shape, [back]) == {500, 500}
    assert :erlang.memory(:binary) - before < 100_000
    assert mappings(dir) != []
    assert nx(:to_binary, [back]) == data
  end

  test "elements in Fortran's order come in that of Nx" do
    # [[0, 1, 2], [3, 4, 5]], column by column.
    handle = %{"format" => "numpy", "dtype" => "<i2", "shape" => [2, 3], "order" => "F"}
    words = fn numbers -> for n <- numbers, into: <<>>, do: <<n::16-little>> end
    {:ok, back} = Tensor.from(words.([0, 3, 1, 4, 2, 5]), handle)
    assert {nx(:type, [back]), nx(:shape, [back])} == {{:s, 16}, {2, 3}}
    assert nx(:to_binary, [back]) == words.(0..5)

    cube = for k <- 0..3, j <- 0..2, i <- 0..1, do: i * 12 + j * 4 + k
    {:ok, back} = Tensor.from(words.(cube), %{handle | "shape" => [2, 3, 4]})
    assert nx(:shape, [back]) == {2, 3, 4}
    assert nx(:to_binary, [back]) == words.(0..23)
  end

  test "elements that numpy has no type for are what the handle calls them" do
    handle = %{"format" => "numpy", "dtype" => "|V2", "shape" => [2], "element" => "bfloat16"}
    {:ok, back} = Tensor.from(<<0x3F80::16-little, 0x4000::16-little>>, handle)
    assert {nx(:type, [back]), nx(:shape, [back])} == {{:bf, 16}, {2}}

    other = %{handle | "element" => "float8_e4m3fn", "dtype" => "|V1"}
    assert {:error, %{code: :unsupported} = error} = Tensor.from(<<1, 2>>, other)
    assert Exception.message(error) =~ "float8_e4m3fn"
  end

  test "bytes and booleans are tensors of bytes", %{place: place} do
    for options <- [[], [dtype: :bool], [dtype: :u8]] do
      handle = SharedMemory.share!(<<1, 0, 1>>, options ++ place)
      back = SharedMemory.fetch!(handle, [as: :tensor] ++ place)
      assert {nx(:type, [back]), nx(:shape, [back])} == {{:u, 8}, {3}}
    end
  end

  test "elements for which the other side has no type are refused by name", context do
    %{place: place, dir: dir} = context

    for type <- [{:bf, 16}, {:f, 8}, {:u, 4}] do
      data = if type == {:u, 4}, do: <<1>>, else: <<1, 2>>
      answer = SharedMemory.share(nx(:from_binary, [data, type, []]), place)
      assert code(answer) == :unsupported
      assert Exception.message(elem(answer, 1)) =~ inspect(type)
    end

    assert TestDir.leftovers(dir) == []

    for {dtype, said} <- [
          {">f4", "little-endian"},
          {"<M8[ns]", "64-bit"},
          {"<m8[s]", "64-bit"},
          {"|S8", "binary"},
          {"|V8", "binary"}
        ] do
      handle = SharedMemory.share!(<<0::64>>, [dtype: dtype] ++ place)
      answer = SharedMemory.fetch(handle, [as: :tensor] ++ place)
      assert code(answer) == :unsupported
      assert elem(answer, 1).remedy =~ said
      assert SharedMemory.fetch!(handle, place) == <<0::64>>
    end

    table = SharedMemory.share!("arrow", [format: :arrow_ipc] ++ place)
    assert code(SharedMemory.fetch(table, [as: :tensor] ++ place)) == :unsupported
  end

  test "what Nx or its backend refuses is a named error", %{place: place, dir: dir} do
    broken = %{tensor(<<1, 2>>, {:u, 8}, {2}) | shape: :none}
    assert {:error, %{code: :unsupported} = error} = SharedMemory.share(broken, place)
    assert error.message =~ "Nx refused it"
    assert TestDir.leftovers(dir) == []

    # Nx has no tensors without elements, and raises.
    for {dtype, shape} <- [{:f32, [0]}, {:u8, [3, 0, 2]}] do
      assert {:error, %{code: :unsupported}} = Tensor.from("", described(dtype, shape))
    end

    # More elements than the stand-in's reshape finds room for: whatever is raised is an answer.
    assert {:error, %{code: :unsupported} = error} = Tensor.from(<<1>>, described(:u8, [2]))
    assert error.message =~ "Nx refused it"
  end

  defp described(dtype, shape) do
    {:ok, dtype} = Snakepit.SharedMemory.Dtype.to_string(dtype)
    %{"format" => "numpy", "dtype" => dtype, "shape" => shape}
  end

  test "a tensor has a type and a shape of its own", %{place: place} do
    tensor = tensor(<<1, 2>>, {:u, 8}, {2})

    for options <- [[dtype: :u8], [shape: [2]], [format: :raw], [format: :arrow_ipc], [size: 2]] do
      assert code(SharedMemory.share(tensor, options ++ place)) == :invalid_option
    end
  end

  @tag :without
  test "without Nx, tensors are refused by name", %{place: place} do
    refute Code.ensure_loaded?(Nx)
    handle = SharedMemory.share!(<<1, 2>>, place)
    assert {:error, error} = SharedMemory.fetch(handle, [as: :tensor] ++ place)
    assert {error.code, error.message} == {:unsupported, "Nx is not loaded"}
    left = %{__struct__: Nx.Tensor, data: <<1>>, type: {:u, 8}, shape: {1}}
    assert code(SharedMemory.share(left, place)) == :unsupported
    assert SharedMemory.fetch!(handle, place) == <<1, 2>>
  end
end
