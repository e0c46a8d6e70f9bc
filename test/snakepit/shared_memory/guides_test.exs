defmodule Snakepit.SharedMemory.GuidesTest do
  # Every block of code of every guide, each in the application started in a namespace of its own.
  use Snakepit.SharedMemory.Case, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.{Guide, Listener}

  @guides Path.wildcard("docs/guides/*.md")
  for guide <- @guides, do: @external_resource(guide)

  test "there are guides, and each has code" do
    # Known to the compiler, which would call a comparison with [] pointless.
    assert length(@guides) > 0
    for guide <- @guides, do: assert(Guide.blocks(guide) != [], "#{guide} has no elixir block")
  end

  for guide <- @guides, block <- Guide.blocks(guide) do
    @block block
    test "#{guide}:#{block.line} runs", %{place: place} do
      Listener.load()
      # What is shown may be a mistake, which is logged.
      capture_log(fn -> with_config(place, fn -> Guide.run(@block) end) end)
    end
  end

  defp guide(code, language) do
    [_] = Guide.parse("# Title\n\n```#{language}\n#{code}```\n", "made-up.md")
  end

  test "a block that is wrong fails, by file and line" do
    for {code, said} <- [
          {"1 = 2\n", "MatchError"},
          {"exit(:gone)\n", "gone"},
          {"throw(:ball)\n", "ball"},
          {"not code at all (\n", "made-up.md"},
          {"import Config\nconfig :snakepit, :shared_memory, max_regoins: 1\n", "max_regions"},
          {"import Config\nconfig :other, :key, 1\n", "keyword list"}
        ] do
      [block] = guide(code, if(code =~ "import Config", do: "exs", else: "elixir"))
      assert block.line == 4
      error = assert_raise RuntimeError, fn -> Guide.run(block) end
      assert error.message =~ "made-up.md:4: "
      assert error.message =~ said
    end
  end

  test "blocks of other languages are left alone; several are told apart" do
    text = "```python\nx = 1\n```\n\n```elixir\n1\n```\ntext\n```elixir\n2\n```\n"
    assert [%{line: 6, code: "1\n"}, %{line: 10, code: "2\n"}] = Guide.parse(text, "x.md")
  end

  test "what a configuration block says is checked, and a good one passes" do
    [block] = guide("import Config\nconfig :snakepit, :shared_memory, max_regions: 5\n", "exs")
    assert Guide.run(block) == :ok
  end
end
