Code.require_file("worker.exs", __DIR__)

defmodule Interop.GuideTest do
  @moduledoc false
  # The blocks of Python of the guide to workers, each run in a worker, with Elixir at the other end.

  use Snakepit.SharedMemory.Case, async: false

  alias Interop.Worker

  @moduletag :interop

  @guide "docs/guides/workers.md"
  @external_resource @guide
  @blocks ~r/^```python\n(.*?)^```$/ms
          |> Regex.scan(File.read!(@guide), capture: :all_but_first)
          |> List.flatten()

  # What a block is sent goes by the names that it uses.
  defp block(word) do
    assert [code] = Enum.filter(@blocks, &(&1 =~ word)), "one block with #{word}"
    code
  end

  defp run(worker, code, variables \\ %{}) do
    assert %{"answer" => answer} =
             Worker.ask(worker, "run", %{"code" => code, "variables" => variables})

    answer
  end

  test "the blocks of Python do what the guide says", %{place: place, dir: dir} do
    assert length(@blocks) == 3

    with_config(place, fn ->
      worker = Worker.start(place)

      handle = SharedMemory.share!(for(n <- 1..4, into: <<>>, do: <<n::16-little>>), dtype: :u16)
      answer = run(worker, block("resolve"), %{"handle" => handle})
      assert answer == %{"sum" => 10.0, "shape" => [4]}
      SharedMemory.deallocate_region!(handle)

      result = run(worker, block("transfer=True"))
      assert result["shape"] == [2, 3]
      bytes = for n <- 0..5, into: <<>>, do: <<n::float-32-little>>
      assert SharedMemory.fetch!(result) == bytes
      assert %{owner_pid: owner} = SharedMemory.get_region_info!(result)
      assert owner == self()
      SharedMemory.deallocate_region!(result)

      region = SharedMemory.allocate_region!(64 * 1024, slots: 1)
      loan = SharedMemory.lend_region!(region, dtype: :f32, shape: [64, 64])
      filled = run(worker, block("borrow"), %{"loan" => loan})
      assert SharedMemory.fetch!(filled) == :binary.copy(<<0.5::float-32-little>>, 64 * 64)
      assert SharedMemory.deallocate_region!(filled) == region

      Worker.kill(worker)
      SharedMemory.cleanup_regions!(grace: 0)
      assert eventually(fn -> Enum.reject(TestDir.leftovers(dir), &(&1 =~ ".pool.")) == [] end)
    end)
  end
end
