defmodule Snakepit.SharedMemory.Call do
  @moduledoc false
  # Calls to our own processes that end by a deadline, and never by an exit.
  #
  # A caller that gives up must know whether its request was, or ever will be, carried out. So each
  # request carries a flag that is decided once: the server takes it before it begins, or the caller
  # gives it up at the deadline, and then a server that comes to it late passes over it. A reply that
  # comes too late for its caller is dropped by the runtime and never becomes a stray message.

  # What a timer of the VM takes.
  @longest_ms 0xFFFF_FFFF

  @untaken 0
  @taken 1
  @given_up 2

  @opaque flag :: :atomics.atomics_ref()

  @typedoc """
    * `:untouched` - at the deadline the server had not begun; it never will
    * `:under_way` - it had begun, and had not answered yet
    * `{:ended, reason}` - there is no such process, or it ended before it answered
  """
  @type failure :: :untouched | :under_way | {:ended, term()}

  @doc """
  Sends `{:by, flag, message}` and waits for the answer up to `timeout` milliseconds.

  With `at_once: true` the server is known to answer in the callback in which it begins: then a
  caller whose request was begun waits for that answer, and `:under_way` does not happen.
  """
  @spec request(GenServer.server(), term(), timeout(), keyword()) ::
          {:ok, term()} | {:error, failure()}
  def request(server, message, timeout, opts \\ []) do
    flag = flag()
    timeout = if timeout == :infinity, do: timeout, else: min(timeout, @longest_ms)
    request = :gen_server.send_request(server, {:by, flag, message})

    case :gen_server.wait_response(request, timeout) do
      {:reply, answer} -> {:ok, answer}
      {:error, {reason, _server}} -> {:error, {:ended, reason}}
      :timeout -> late(request, give_up(flag), opts[:at_once] == true)
    end
  end

  defp late(request, :taken, true) do
    case :gen_server.receive_response(request, :infinity) do
      {:reply, answer} -> {:ok, answer}
      {:error, {reason, _server}} -> {:error, {:ended, reason}}
    end
  end

  # From here on no reply is delivered; one that came just now is as good as any.
  defp late(request, decided, _at_once?) do
    case :gen_server.receive_response(request, 0) do
      {:reply, answer} -> {:ok, answer}
      {:error, {reason, _server}} -> {:error, {:ended, reason}}
      :timeout when decided == :taken -> {:error, :under_way}
      :timeout -> {:error, :untouched}
    end
  end

  defp give_up(flag) do
    case :atomics.compare_exchange(flag, 1, @untaken, @given_up) do
      :ok -> :given_up
      @taken -> :taken
    end
  end

  @doc "A flag that one of several takes, and only one."
  @spec flag() :: flag()
  def flag, do: :atomics.new(1, signed: false)

  @doc "Whether the server may begin: the caller has not given up."
  @spec take(term()) :: boolean()
  def take(flag) do
    :atomics.compare_exchange(flag, 1, @untaken, @taken) == :ok
  rescue
    # Not from `request/4`: whoever sent it is told nothing, and nothing is done.
    ArgumentError -> false
  end
end
