defmodule Snakepit.SharedMemory.Guide do
  @moduledoc false
  # The blocks of code of a Markdown file, run as their readers would: each ```elixir block by
  # itself, in a process of its own; each ```exs block is a configuration file, evaluated as one,
  # and what it says of shared memory is checked as at the start.

  alias Snakepit.SharedMemory.Config

  @patience 60_000

  @type block :: %{
          file: String.t(),
          line: pos_integer(),
          language: String.t(),
          code: String.t()
        }

  @doc "The blocks of a file, with the line that each one's code begins on."
  @spec blocks(Path.t()) :: [block()]
  def blocks(file), do: file |> File.read!() |> parse(file)

  @doc "The blocks of a text."
  @spec parse(String.t(), String.t()) :: [block()]
  def parse(markdown, file) do
    for [{start, _length}, language, code] <-
          Regex.scan(~r/^```(elixir|exs)[ \t]*\n(.*?)^```[ \t]*$/ms, markdown, return: :index) do
      before = binary_part(markdown, 0, start)
      line = length(String.split(before, "\n")) + 1
      %{file: file, line: line, language: part(markdown, language), code: part(markdown, code)}
    end
  end

  defp part(text, {from, length}), do: binary_part(text, from, length)

  @doc "Runs a block to its end; raises, naming file and line, when it raises, exits or hangs."
  @spec run(block()) :: :ok
  def run(block) do
    {pid, monitor} = spawn_monitor(fn -> evaluate(block) end)

    receive do
      {:DOWN, ^monitor, :process, ^pid, :normal} -> :ok
      {:DOWN, ^monitor, :process, ^pid, reason} -> raise failure(block, reason)
    after
      @patience ->
        Process.exit(pid, :kill)
        raise failure(block, :hangs)
    end
  end

  defp failure(block, {:said, text}), do: "#{block.file}:#{block.line}: #{text}"
  defp failure(block, reason), do: failure(block, {:said, Exception.format_exit(reason)})

  defp evaluate(%{language: "exs"} = block) do
    said(fn ->
      settings = Elixir.Config.Reader.eval!(block.file, block.code, env: :prod)
      {:ok, _} = settings |> get_in([:snakepit, :shared_memory]) |> Config.new()
    end)
  end

  defp evaluate(block) do
    said(fn -> Code.eval_string(block.code, [], file: block.file, line: block.line) end)
  end

  # An exit with what was raised in it would be logged as a crash.
  defp said(fun) do
    fun.()
  catch
    kind, reason -> exit({:said, Exception.format(kind, reason, __STACKTRACE__)})
  end
end
