Code.require_file("../../examples/demo/json.ex", __DIR__)

defmodule Interop.Worker do
  @moduledoc false
  # A Python process that does as it is asked, and can be killed at any step of it.

  alias Demo.JSON

  @root Path.expand("../..", __DIR__)
  @patience 60_000

  defstruct [:port, :os_pid]

  @doc "Starts one; `place` says the namespace and the directory."
  def start(place) do
    # A port whose process is killed while it is written to ends with :epipe, and its owner with it.
    Process.flag(:trap_exit, true)
    python = System.get_env("SNAKEPIT_PYTHON") || Path.join(@root, ".venv/bin/python")

    port =
      Port.open({:spawn_executable, python}, [
        :binary,
        :exit_status,
        line: 100_000,
        args: [Path.join(__DIR__, "worker.py"), place[:namespace], place[:dir]]
      ])

    worker = %__MODULE__{port: port}
    %{"pid" => os_pid} = answer(worker)
    %{worker | os_pid: os_pid}
  end

  @doc "Asks, and waits for the answer."
  def ask(worker, op, fields \\ %{}) do
    tell(worker, op, fields)
    answer(worker)
  end

  @doc "Asks without waiting."
  def tell(worker, op, fields \\ %{}) do
    Port.command(worker.port, JSON.encode(Map.put(fields, "op", op)) <> "\n")
  end

  @doc "The answer to what was asked."
  def answer(%{port: port}, begun \\ "") do
    receive do
      {^port, {:data, {:noeol, part}}} -> answer(%{port: port}, begun <> part)
      {^port, {:data, {:eol, part}}} -> begun |> Kernel.<>(part) |> JSON.decode() |> elem(1)
      {^port, {:exit_status, status}} -> raise "the worker ended with status #{status}"
    after
      @patience -> raise "the worker does not answer"
    end
  end

  @doc "What it still said before it was killed: answers that are whole."
  def last_words(%{port: port} = worker, words \\ []) do
    receive do
      {^port, {:data, {:eol, word}}} -> last_words(worker, [word | words])
      {^port, {:data, {:noeol, _part}}} -> last_words(worker, words)
      {^port, {:exit_status, _status}} -> decoded(words)
      {:EXIT, ^port, _reason} -> decoded(words)
    after
      @patience -> raise "the worker does not end"
    end
  end

  defp decoded(words), do: for(word <- words, do: word |> JSON.decode() |> elem(1))

  @doc "Ends it by SIGKILL and waits for its end; answers what it had said before. A second time does nothing."
  def kill(worker) do
    if Port.info(worker.port) do
      {_, _} = System.cmd("kill", ["-KILL", "#{worker.os_pid}"], stderr_to_stdout: true)
      last_words(worker)
    else
      []
    end
  end
end
