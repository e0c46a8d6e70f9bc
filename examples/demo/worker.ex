defmodule Demo.Worker do
  @moduledoc """
  A Python process on a port, asked in JSON, one line a message: what a Snakepit worker is to an app, reduced to what
  this demo needs. Only these lines cross the pipe, and they are counted.
  """

  alias Demo.JSON

  @enforce_keys [:port, :os_pid]
  defstruct @enforce_keys

  @type t :: %__MODULE__{port: port(), os_pid: non_neg_integer()}

  @max_line 1_048_576

  @doc "Starts `script` with the project's Python; names that it uses are those of `namespace`."
  @spec start(Path.t(), String.t()) :: t()
  def start(script, namespace) do
    port =
      Port.open({:spawn_executable, python()}, [
        :binary,
        :exit_status,
        :use_stdio,
        line: @max_line,
        args: ["-u", script],
        env: [{~c"SNAKEPIT_SHM_NAMESPACE", String.to_charlist(namespace)}]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    %__MODULE__{port: port, os_pid: os_pid}
  end

  @doc "The Python that has the package: `$SNAKEPIT_PYTHON`, else the one in `.venv`."
  @spec python() :: Path.t()
  def python do
    python = System.get_env("SNAKEPIT_PYTHON") || Path.expand("../../.venv/bin/python", __DIR__)
    if File.exists?(python), do: python, else: raise("no Python at #{python}; run `make setup`")
  end

  @doc """
  Sends a request and waits for its answer. Returns the answer and how many bytes crossed the pipe, both ways together.

  Raises when the worker reports an error, dies, or does not answer within `timeout` milliseconds.
  """
  @spec call(t(), map(), timeout()) :: {map(), pos_integer()}
  def call(worker, request, timeout \\ 60_000) do
    sent = send_request(worker, request)
    {answer, received} = answer(worker, timeout)
    {answer, sent + received}
  end

  @doc "Sends a request; `answer/2` waits for what comes of it."
  @spec send_request(t(), map()) :: pos_integer()
  def send_request(%__MODULE__{port: port}, request) do
    line = JSON.encode(request) <> "\n"
    Port.command(port, line)
    byte_size(line)
  end

  @doc "The next answer and its size in bytes."
  @spec answer(t(), timeout()) :: {map(), pos_integer()}
  def answer(%__MODULE__{port: port}, timeout) do
    receive do
      {^port, {:data, {:eol, line}}} ->
        {checked(line), byte_size(line) + 1}

      {^port, {:data, {:noeol, _part}}} ->
        raise "the worker's answer is longer than #{@max_line} bytes"

      {^port, {:exit_status, status}} ->
        raise "the worker ended with status #{status}; its own message is above"
    after
      timeout -> raise "the worker did not answer within #{timeout} ms"
    end
  end

  @doc "Asks the worker to end and waits until it has; nothing is left to do when it has ended by itself."
  @spec stop(t()) :: :ok
  def stop(%__MODULE__{port: port} = worker) do
    if Port.info(port) do
      send_request(worker, %{op: "stop"})
      await_end(worker)
    else
      :ok
    end
  end

  defp await_end(%__MODULE__{port: port} = worker) do
    receive do
      {^port, {:exit_status, 0}} ->
        :ok

      {^port, {:exit_status, status}} ->
        raise "the worker ended with status #{status}; its own message is above"
    after
      10_000 -> raise "the worker (process #{worker.os_pid}) does not end"
    end
  end

  defp checked(line) do
    case JSON.decode(line) do
      {:ok, %{"ok" => true} = answer} -> answer
      {:ok, %{"error" => message}} -> raise "the worker says: #{message}"
      other -> raise "the worker's answer makes no sense: #{inspect(other)}"
    end
  end
end
