defmodule Snakepit.SharedMemory.Foreign do
  @moduledoc false
  # Another VM, as another OS process: it runs what it is told, and can be killed.

  import ExUnit.Assertions

  @patience 60_000

  @program """
  Logger.configure(level: :error)
  [config, hidden] = System.argv()
  {config, _} = Code.eval_string(config)
  {hidden, _} = Code.eval_string(hidden)
  Enum.each(hidden, &:code.del_path/1)
  Application.put_env(:snakepit, :shared_memory, config)
  {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)

  answer = fn term -> IO.puts("=" <> Base.encode64(:erlang.term_to_binary(term))) end
  answer.(System.pid())

  serve = fn serve ->
    case IO.gets("") do
      line when is_binary(line) ->
        {result, _} = line |> String.trim() |> Base.decode64!() |> Code.eval_string()
        answer.(result)
        serve.(serve)

      # Whoever started us has gone.
      _eof ->
        System.stop(0)
        Process.sleep(:infinity)
    end
  end

  serve.(serve)
  """

  @doc "Starts a VM with the application running on `config`, and without the applications in `hidden`."
  def start(config, hidden \\ []) do
    lib = Path.dirname(Application.app_dir(:snakepit_shared_memory))

    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :binary,
        :exit_status,
        line: 1_000_000,
        args: ["-e", @program, inspect(config, limit: :infinity), inspect(hidden)],
        env: [{~c"ERL_LIBS", String.to_charlist(lib)}]
      ])

    peer = %{port: port, os_pid: nil}
    %{peer | os_pid: answer(peer)}
  end

  @doc "Has it run a piece of Elixir, in the one process that owns all it allocates."
  def run(peer, code) do
    Port.command(peer.port, Base.encode64(code) <> "\n")
    answer(peer)
  end

  @doc "Ends it by SIGKILL and waits for its end."
  def kill(peer) do
    {_, 0} = System.cmd("kill", ["-KILL", peer.os_pid])
    await_exit(peer)
  end

  @doc "Has it end as an application ends, and waits for that."
  def stop(peer) do
    Port.command(peer.port, Base.encode64("System.stop(0)") <> "\n")
    await_exit(peer)
  end

  defp answer(%{port: port}) do
    receive do
      {^port, {:data, {:eol, "=" <> encoded}}} ->
        encoded |> Base.decode64!() |> :erlang.binary_to_term()

      {^port, {:data, {:eol, other}}} ->
        flunk("the other VM says: #{other}")

      {^port, {:exit_status, status}} ->
        flunk("the other VM ended with status #{status}")
    after
      @patience -> flunk("the other VM does not answer")
    end
  end

  defp await_exit(%{port: port} = peer) do
    receive do
      {^port, {:exit_status, _status}} -> :ok
      {^port, {:data, _last_words}} -> await_exit(peer)
    after
      @patience -> flunk("the other VM does not end")
    end
  end
end
