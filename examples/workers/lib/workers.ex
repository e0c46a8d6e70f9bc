defmodule Workers do
  @moduledoc """
  Python workers on Ports, with the calls that `Snakepit.SharedMemory.Bridge` needs of a transport: what an
  application that does not use Snakepit can do itself.

      Bridge.execute("blur", %{images: Bridge.value(bytes, dtype: :u8, shape: shape)}, via: Workers)

  A message is JSON, framed by its length; large values travel as handles in it. `raw/3` sends the bytes themselves
  through the same pipe, for comparison.
  """

  alias Demo.JSON
  alias Workers.Pool

  @doc """
  Has a worker call a tool. Options:

    * `:timeout` - milliseconds for all of it; then the worker that is still at it is killed. Default: 60_000
    * `:retries` - how often the call is made again when its worker has died. Only for tools that may run twice.
      Default: 0
    * `:binary_parameters` - arguments as bytes, in base64 here
  """
  @spec execute(String.t(), map(), keyword()) :: {:ok, term()} | {:error, term()}
  def execute(command, args, opts \\ []) do
    request = request(command, args, opts, false)
    call(request, opts, Keyword.get(opts, :retries, 0), fn _chunk -> :ok end)
  end

  @doc "Has a worker call a tool that yields chunks; `callback` gets each, in the calling process."
  @spec execute_stream(String.t(), map(), (term() -> term()), keyword()) :: :ok | {:error, term()}
  def execute_stream(command, args, callback, opts \\ []) do
    # A stream that was begun is not begun again: its first chunks were seen.
    with {:ok, _} <- call(request(command, args, opts, true), opts, 0, callback), do: :ok
  end

  @doc "Has a worker call a tool that takes bytes and returns bytes, all of them through the pipe."
  @spec raw(String.t(), iodata(), keyword()) :: {:ok, binary()} | {:error, term()}
  def raw(command, bytes, opts \\ []) do
    call([?R, byte_size(command), command, bytes], opts, 0, fn _chunk -> :ok end)
  end

  defp request(command, args, opts, stream?) do
    apart =
      for {key, bytes} <- opts[:binary_parameters] || %{},
          into: %{},
          do: {key, Base.encode64(bytes)}

    [?J | JSON.encode(%{tool: command, args: args, binary: apart, stream: stream?})]
  end

  defp call(request, opts, retries, callback) do
    case once(request, Keyword.get(opts, :timeout, 60_000), callback) do
      {:error, {:worker_died, _reason}} when retries > 0 ->
        call(request, opts, retries - 1, callback)

      answer ->
        answer
    end
  end

  # The answer comes by messages to an alias: one that comes too late is nobody's.
  defp once(request, timeout, callback) do
    to = :erlang.alias()
    monitor = Process.monitor(Pool)
    deadline = System.monotonic_time(:millisecond) + timeout
    Pool.run(%{to: to, caller: self(), request: request, deadline: deadline})

    try do
      answer(to, monitor, deadline, callback)
    after
      :erlang.unalias(to)
      Process.demonitor(monitor, [:flush])
      forget(to)
    end
  end

  defp answer(to, monitor, deadline, callback) do
    receive do
      {^to, {:data, <<?C, chunk::binary>>}} ->
        {:ok, chunk} = JSON.decode(chunk)
        callback.(chunk)
        answer(to, monitor, deadline, callback)

      {^to, {:data, <<?R, bytes::binary>>}} ->
        {:ok, bytes}

      {^to, {:data, <<?J, answer::binary>>}} ->
        decoded(JSON.decode(answer))

      {^to, {:died, reason}} ->
        {:error, {:worker_died, reason}}

      {:DOWN, ^monitor, :process, _pool, reason} ->
        {:error, {:worker_died, reason}}
    after
      max(deadline - System.monotonic_time(:millisecond), 0) -> {:error, :timeout}
    end
  end

  defp decoded({:ok, %{"ok" => value}}), do: {:ok, value}
  defp decoded({:ok, %{"error" => message}}), do: {:error, message}
  defp decoded(other), do: {:error, {:no_answer, other}}

  defp forget(to) do
    receive do
      {^to, _late} -> forget(to)
    after
      0 -> :ok
    end
  end
end
