defmodule Demo.Pipe do
  @moduledoc "The yardstick: the same work in a Python process that gets the bytes themselves through a pipe."

  alias Demo.Worker

  @doc "Starts `script`; messages are framed by a length of four bytes, as ports do it best."
  @spec start(Path.t()) :: port()
  def start(script) do
    Port.open({:spawn_executable, Worker.python()}, [
      :binary,
      :exit_status,
      :use_stdio,
      packet: 4,
      args: [script]
    ])
  end

  @doc "Sends the bytes and waits for those that come back."
  @spec call(port(), binary()) :: binary()
  def call(port, bytes) do
    Port.command(port, bytes)

    receive do
      {^port, {:data, answer}} -> answer
      {^port, {:exit_status, status}} -> raise "the pipe's worker ended with status #{status}"
    after
      120_000 -> raise "the pipe's worker did not answer within two minutes"
    end
  end

  @doc "Ends the worker, if it has not ended, with an empty message, and waits until it has."
  @spec stop(port()) :: :ok
  def stop(port) do
    if Port.info(port) do
      Port.command(port, "")
      await_end(port)
    else
      :ok
    end
  end

  defp await_end(port) do
    receive do
      {^port, {:exit_status, 0}} -> :ok
      {^port, {:exit_status, status}} -> raise "the pipe's worker ended with status #{status}"
    after
      10_000 -> raise "the pipe's worker does not end"
    end
  end
end
