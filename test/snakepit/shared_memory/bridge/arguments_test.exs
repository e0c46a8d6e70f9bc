defmodule Snakepit.SharedMemory.Bridge.ArgumentsTest do
  # What a tool is given, and when that is released.
  use Snakepit.SharedMemory.Case, async: false

  import Snakepit.SharedMemory.Transport

  alias Snakepit.SharedMemory.{Bridge, Sessions, Transport}

  test "over the threshold travel as handles, nested ones too, and are released", %{
    place: place,
    dir: dir
  } do
    text = String.duplicate("é", 700)

    args = %{
      "image" => large(),
      text: text,
      small: "x",
      deep: %{"list" => [1, nil, %{"b" => large(1)}, [text]], "n" => 1.5}
    }

    assert {:ok, :done} =
             call(args, place, fn args, opts ->
               assert opts == []
               assert %{"__snakepit_shm_text__" => image} = args["image"]
               assert SharedMemory.fetch!(image, dir: dir) == large()
               assert %{"__snakepit_shm_text__" => handle} = args.text
               assert SharedMemory.fetch!(handle, dir: dir) == text
               assert args.small == "x"

               assert [1, nil, %{"b" => %{"__snakepit_shm_text__" => b}}, [t]] = args.deep["list"]

               assert SharedMemory.fetch!(b, dir: dir) == large(1)
               assert SharedMemory.fetch!(t["__snakepit_shm_text__"], dir: dir) == text
               assert args.deep["n"] == 1.5
               assert length(SharedMemory.list_regions!(place)) == 4
               {:ok, :done}
             end)

    assert SharedMemory.list_regions!(place) == []
  end

  test "of bytes: beside the JSON, by handle over the threshold, in base64 further inside", %{
    place: place,
    dir: dir
  } do
    bytes = <<0, 255, 128>>
    apart = %{"given" => bytes, "big" => large(), "other" => {:pickle, 1}}
    args = %{a: bytes, deep: [bytes], v: Bridge.value("text, but bytes")}

    {:ok, :done} =
      call(
        args,
        place,
        fn args, opts ->
          assert opts[:binary_parameters] ==
                   %{
                     "given" => bytes,
                     "other" => {:pickle, 1},
                     "a" => bytes,
                     "v" => "text, but bytes"
                   }

          assert opts[:timeout] == 5
          assert %{"big" => %{"__snakepit_shm__" => 1} = handle, deep: [inline]} = args
          assert SharedMemory.fetch!(handle, dir: dir) == large()
          assert %{"__snakepit_shm_inline__" => 1, "format" => "raw", "dtype" => nil} = inline
          assert Base.decode64!(inline["base64"]) == bytes
          assert map_size(args) == 2
          {:ok, :done}
        end,
        binary_parameters: apart,
        timeout: 5
      )
  end

  test "of arrays carry dtype and shape either way", %{place: place} do
    floats = for n <- 1..1000, into: <<>>, do: <<n::float-32-little>>
    array = Bridge.value(floats, dtype: :f32, shape: [10, 100])
    little = Bridge.value(<<1, 2>>, dtype: {:u, 8})

    {:ok, :done} =
      call(%{x: array, y: [little]}, place, fn %{x: handle, y: [inline]}, _opts ->
        assert %{"dtype" => "<f4", "shape" => [10, 100], "format" => "numpy"} = handle

        assert %{"dtype" => "|u1", "shape" => nil, "format" => "numpy", "base64" => "AQI="} =
                 inline

        {:ok, :done}
      end)
  end

  test "that are handles of the caller stay, and what is no value of ours is let be", %{
    place: place
  } do
    handle = SharedMemory.share!(large(), place)
    improper = [large(1) | large(2)]
    date = ~D[2024-02-29]

    {:ok, :done} =
      call(%{h: handle, d: date, i: improper, t: {large()}}, place, fn args, _ ->
        assert %{h: ^handle, d: ^date, t: {_}, i: [%{"__snakepit_shm_text__" => _} | tail]} = args

        assert tail == large(2)
        {:ok, :done}
      end)

    assert SharedMemory.fetch!(handle, dir: place[:dir]) == large()
    SharedMemory.deallocate_region!(handle, dir: place[:dir])
  end

  test "a tensor is an array; without its library it is what it is", %{place: place} do
    tensor = %{__struct__: Nx.Tensor, data: large()}
    assert {:ok, ^tensor} = call(%{t: tensor}, place, fn args, _ -> {:ok, args.t} end)

    body =
      quote do
        def type(_tensor), do: {:u, 8}
        def shape(_tensor), do: {50, 100}
        def to_binary(tensor), do: tensor.data
      end

    Module.create(Nx, body, Macro.Env.location(__ENV__))

    try do
      {:ok, :done} =
        call(%{t: tensor}, place, fn %{t: handle}, _ ->
          assert %{"dtype" => "|u1", "shape" => [50, 100], "bytes" => 5000} = handle
          {:ok, :done}
        end)
    after
      :code.purge(Nx)
      :code.delete(Nx)
      :code.purge(Nx)
    end
  end

  test "are released when the transport raises, throws or exits", %{place: place} do
    for fail <- [fn -> raise "no" end, fn -> throw(:no) end, fn -> exit(:no) end] do
      try do
        call(%{x: large()}, place, fn _args, _opts -> fail.() end)
      catch
        _kind, _reason -> :ok
      end

      assert SharedMemory.list_regions!(place) == []
    end
  end

  test "are released when one of them raises before the call", %{place: place} do
    tool = fn _, _ -> flunk("not called") end

    for broken <- [
          %Bridge.Value{data: :none, options: []},
          %Bridge.Value{data: large(), options: 1}
        ] do
      assert_raise ArgumentError, fn ->
        call(%{a: large(), b: [large(), broken]}, place, tool)
      end

      assert SharedMemory.list_regions!(place) == []
    end

    assert Enum.filter(Process.get_keys(), &match?({Bridge.Arguments, _}, &1)) == []
    # What are no parameters is the transport's to refuse.
    tool = fn args, opts -> {:ok, {map_size(args), opts[:binary_parameters]}} end

    for wrong <- [~D[2024-02-29], [large()]] do
      assert call(%{a: large()}, place, tool, binary_parameters: wrong) == {:ok, {1, wrong}}
    end

    assert SharedMemory.list_regions!(place) == []
  end

  test "are released when the caller is killed in the middle", %{place: place} do
    test = self()

    caller =
      spawn(fn ->
        call(%{x: large()}, place, fn _args, _opts ->
          send(test, :there)
          receive do: (:never -> :ok)
        end)
      end)

    assert_receive :there, 10_000
    assert [%{owner_pid: ^caller}] = SharedMemory.list_regions!(place)
    kill(caller)
    assert eventually(fn -> SharedMemory.list_regions!(place) == [] end)
  end

  test "R10.2 of a call in a session belong to that session", %{place: place} do
    {:ok, :done} =
      Bridge.execute_in_session(
        "s1",
        "tool",
        %{x: large()},
        [
          via: Transport,
          threshold: 1000,
          tool: fn _args, opts ->
            assert opts[:session_id] == "s1"
            assert [%{session: "s1"}] = SharedMemory.list_regions!([session: "s1"] ++ place)
            {:ok, :done}
          end
        ] ++ place
      )

    assert {:ok, {"s1", "tool", %{x: "y"}, [pool: P]}} =
             Bridge.execute_in_session("s1", "tool", %{x: "y"}, via: Transport.Sessioned, pool: P)

    assert Code.ensure_loaded?(Sessions)
  end
end
