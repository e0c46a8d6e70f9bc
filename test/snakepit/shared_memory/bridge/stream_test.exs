defmodule Snakepit.SharedMemory.Bridge.StreamTest do
  # Tools that answer in chunks.
  use Snakepit.SharedMemory.Case, async: false

  import Snakepit.SharedMemory.Transport

  alias Snakepit.SharedMemory.{Bridge, Transport}

  defp stream(place, chunks, callback, opts \\ []) do
    tool = fn _args, _opts -> chunks end
    opts = [via: Transport, tool: tool, threshold: 1000] ++ opts ++ place
    Bridge.execute_stream("tool", %{x: large()}, callback, opts)
  end

  test "each chunk is resolved, and taken from its living writer", %{place: place} do
    test = self()

    chunks =
      for n <- 1..3 do
        {handle, _writer} = give("chunk #{n}", place, keep: true)
        %{"data" => %{"__snakepit_shm_chunk__" => handle}, "n" => n}
      end

    assert stream(place, chunks, &send(test, &1)) == :ok
    for n <- 1..3, do: assert_receive(%{"data" => "chunk " <> _, "n" => ^n})
    assert SharedMemory.list_regions!(place) == []
  end

  test "with one that cannot be resolved end in its error, and leave nothing", %{place: place} do
    test = self()
    [a, b, c] = for n <- 1..3, do: elem(give("#{n}", place, keep: true), 0)
    SharedMemory.deallocate_region!(b, dir: place[:dir])
    chunks = for handle <- [a, b, c], do: %{"__snakepit_shm_chunk__" => handle}
    assert code(stream(place, chunks, &send(test, {:chunk, &1}))) == :not_found
    assert_received {:chunk, "1"}
    refute_received {:chunk, _}
    assert SharedMemory.list_regions!(place) == []
  end

  test "what the callback answers is the transport's, and so is an end of ours", %{place: place} do
    {gone, _} = give("gone", place)
    SharedMemory.deallocate_region!(gone, dir: place[:dir])
    test = self()

    defmodule Halting do
      def execute_stream("tool", %{test: test, chunks: chunks}, callback, _opts) do
        for chunk <- chunks, do: send(test, {:answer, callback.(chunk)})
        :ok
      end
    end

    # As Snakepit hands a chunk over: with a key of its own in it.
    chunks = [%{"data" => gone, "is_final" => false}]
    run = &Bridge.execute_stream("tool", %{test: test, chunks: &1}, &2, [via: Halting] ++ place)
    assert run.([%{"n" => 1}], fn %{"n" => 1} -> :halt end) == :ok
    assert_received {:answer, :halt}
    assert code(run.(chunks, fn _ -> flunk("a chunk that is not there") end)) == :not_found
    assert_received {:answer, {:halt, %Error{code: :not_found}}}
  end

  test "with resolve: false the callback has the handles to remove", %{place: place} do
    test = self()
    {handle, _} = give("x", place, keep: true)
    chunks = [%{"__snakepit_shm_chunk__" => handle}]
    assert stream(place, chunks, &send(test, &1), resolve: false) == :ok
    assert_received %{"__snakepit_shm__" => 1, "name" => _} = ^handle
    assert SharedMemory.deallocate_region!(handle, dir: place[:dir])
  end
end
