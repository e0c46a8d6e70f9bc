defmodule Snakepit.SharedMemory.Bridge.ResultsTest do
  # What a tool answers: whose it is, and what is left of it.
  use Snakepit.SharedMemory.Case, async: false

  import Snakepit.SharedMemory.Transport

  alias Snakepit.SharedMemory.Listener

  test "come back resolved, nested ones too, and leave nothing", %{place: place} do
    tool = fn _args, _opts ->
      {a, _} = give("one", place)
      {b, _} = give(large(), place)
      {:ok, %{"a" => a, "list" => [1, %{"b" => b}], "plain" => "x"}}
    end

    assert call(%{}, place, tool) ==
             {:ok, %{"a" => "one", "list" => [1, %{"b" => large()}], "plain" => "x"}}

    assert SharedMemory.list_regions!(place) == []
  end

  test "that somebody still owns are looked at and left", %{place: place, dir: dir} do
    mine = SharedMemory.share!("mine", place)
    {foreign, writer} = give("foreign", place, keep: true)
    tool = fn args, _ -> {:ok, [mine, foreign, args.x["__snakepit_shm_text__"]]} end
    assert call(%{x: large()}, place, tool) == {:ok, ["mine", "foreign", large()]}
    assert SharedMemory.fetch!(mine, dir: dir) == "mine"
    assert SharedMemory.fetch!(foreign, dir: dir) == "foreign"
    assert length(SharedMemory.list_regions!(place)) == 2
    SharedMemory.deallocate_region!(mine, dir: dir)
    {:ok, _} = Native.discard(writer)
  end

  test "stay handles with resolve: false, and are then the caller's", %{place: place} do
    {result, caller} =
      in_process(fn ->
        call(%{}, place, fn _, _ -> {:ok, [elem(give("kept", place), 0)]} end, resolve: false)
      end)

    assert {:ok, [%{"__snakepit_shm__" => 1} = handle]} = result
    assert [%{owner_pid: ^caller}] = SharedMemory.list_regions!(place)
    assert SharedMemory.fetch!(handle, dir: place[:dir]) == "kept"
    kill(caller)
    assert eventually(fn -> SharedMemory.list_regions!(place) == [] end)
  end

  test "may name one region more than once", %{place: place} do
    for resolve <- [true, false] do
      tool = fn _, _ ->
        {handle, _} = give(large(), place)
        {:ok, %{"a" => handle, "b" => [handle, %{"__snakepit_shm_text__" => handle}]}}
      end

      assert {:ok, %{"a" => one, "b" => [two, three]}} = call(%{}, place, tool, resolve: resolve)

      assert {two, three} == {one, one}
      if resolve, do: assert(one == large()), else: take(one, place)
      assert SharedMemory.list_regions!(place) == []
    end
  end

  test "may be an argument, which with resolve: false is then the caller's", %{place: place} do
    me = self()

    tool = fn args, _ ->
      send(me, {:other, args.other["__snakepit_shm_text__"]})
      {:ok, %{"back" => args.x}}
    end

    args = %{x: large(), other: large(1)}
    assert {:ok, %{"back" => handle}} = call(args, place, tool, resolve: false)
    assert SharedMemory.fetch!(handle, dir: place[:dir]) == large()
    assert [%{owner_pid: ^me}] = SharedMemory.list_regions!(place)
    take(handle, place)
    # The other one went with the call.
    assert_received {:other, other}
    assert code(SharedMemory.fetch(other, dir: place[:dir])) == :not_found
  end

  defp take(handle, place), do: SharedMemory.deallocate_region!(handle, dir: place[:dir])

  test "are no regions of this VM, and refused by no limit", %{place: place, dir: dir} do
    with_config([max_total_memory: 4096] ++ place, fn ->
      {handle, _} = give(large(), place, ttl: true)
      assert code(SharedMemory.fetch(handle)) == :resource_exhausted
      assert call(%{}, [], fn _, _ -> {:ok, handle} end) == {:ok, large()}
      assert eventually(fn -> SharedMemory.list_regions!() == [] end)
    end)

    assert TestDir.leftovers(dir) |> Enum.all?(&(&1 =~ ".pool."))
  end

  test "that somebody else has taken meanwhile are theirs", %{place: place} do
    {handle, _} = give(large(), place)
    test = self()

    # In the middle of the fetch of the bridge another process is faster.
    faster = fn ->
      if self() == test and Process.put(:faster, true) == nil do
        fetch = fn -> SharedMemory.fetch!(handle, dir: place[:dir], adopt: true) end
        send(test, {:theirs, in_process(fetch)})
      end
    end

    event = [:snakepit, :shared_memory, :region, :fetch, :stop]
    Listener.attach("faster", [event], &__MODULE__.run/4, faster)
    assert call(%{}, place, fn _, _ -> {:ok, handle} end) == {:ok, large()}
    assert_received {:theirs, {bytes, owner}}
    assert bytes == large()
    assert [%{owner_pid: ^owner}] = SharedMemory.list_regions!(place)
    kill(owner)
    assert eventually(fn -> SharedMemory.list_regions!(place) == [] end)
  end

  def run(_event, _measurements, _metadata, fun), do: fun.()

  test "that cannot be fetched are an error, and the others do not stay", %{place: place} do
    tool = fn _, _ ->
      {gone, _} = give("gone", place)
      SharedMemory.deallocate_region!(gone, dir: place[:dir])
      {there, _} = give("there", place)
      {:ok, %{"a" => there, "b" => gone, "c" => elem(give("also", place), 0)}}
    end

    assert code(call(%{}, place, tool)) == :not_found
    assert SharedMemory.list_regions!(place) == []
  end

  test "of the wrong form are refused by name; what only looks like it is plain", %{
    place: place
  } do
    for hostile <- [
          %{"__snakepit_shm__" => 1},
          %{"__snakepit_shm__" => 1, "name" => "../etc", "namespace" => "x"},
          %{"__snakepit_shm_inline__" => 1, "base64" => "%"},
          %{"__snakepit_shm_inline__" => 2, "base64" => ""},
          %{"__snakepit_shm_inline__" => 1}
        ] do
      assert code(call(%{}, place, fn _, _ -> {:ok, [hostile]} end)) == :invalid_handle
    end

    for plain <- [
          %{"__snakepit_shm_text__" => "x"},
          %{"__snakepit_shm_chunk__" => %{}},
          ~D[2024-02-29],
          [1 | 2]
        ] do
      assert call(%{}, place, fn _, _ -> {:ok, plain} end) == {:ok, plain}
    end
  end

  test "that are errors or nothing known pass as they are", %{place: place} do
    for answer <- [{:error, :worker_busy}, {:error, "no"}, :ok, nil, {:ok, nil}] do
      assert call(%{x: large()}, place, fn _, _ -> answer end) == answer
    end
  end
end
