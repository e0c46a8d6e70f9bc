defmodule Snakepit.SharedMemory.CallTest do
  use ExUnit.Case, async: true

  import Snakepit.SharedMemory.Case, only: [eventually: 1, kill: 1]

  alias Snakepit.SharedMemory.Call

  defmodule Server do
    use GenServer

    def init(test), do: {:ok, test}

    def handle_call({:by, flag, message}, from, test) do
      if Call.take(flag) do
        send(test, {:began, message, from})
        answer(message, test)
      else
        send(test, {:passed_over, message})
        {:noreply, test}
      end
    end

    defp answer(:later, test), do: {:noreply, test}
    defp answer(:crash, _test), do: exit(:kill_me)

    # In the callback, as slow as the test wants it.
    defp answer({:slow, ref}, test) do
      receive do: (^ref -> {:reply, :slowly, test})
    end

    defp answer(message, test), do: {:reply, {:did, message}, test}
  end

  setup do
    start = {GenServer, :start_link, [Server, self()]}
    {:ok, server: start_supervised!(%{id: Server, start: start, restart: :temporary})}
  end

  defp no_message do
    assert {:messages, []} = Process.info(self(), :messages)
  end

  test "an answer in time", %{server: server} do
    assert Call.request(server, :now, 5_000) == {:ok, {:did, :now}}
    assert_received {:began, :now, _}
    no_message()
  end

  test "given up before the server began: it never does", %{server: server} do
    :sys.suspend(server)
    assert Call.request(server, :now, 10) == {:error, :untouched}
    assert Call.request(server, :now, 0, at_once: true) == {:error, :untouched}
    :sys.resume(server)
    assert_receive {:passed_over, :now}, 5_000
    assert_receive {:passed_over, :now}, 5_000
    no_message()
  end

  test "begun and not answered: said so, and a late answer is no message", %{server: server} do
    assert Call.request(server, :later, 10) == {:error, :under_way}
    assert_received {:began, :later, from}
    GenServer.reply(from, :too_late)
    assert Call.request(server, :now, 5_000) == {:ok, {:did, :now}}
    assert_received {:began, :now, _}
    no_message()
  end

  test "begun by a server that answers at once: the answer is waited for", %{server: server} do
    ref = make_ref()
    caller = Task.async(fn -> Call.request(server, {:slow, ref}, 100, at_once: true) end)
    assert_receive {:began, {:slow, ^ref}, _}, 5_000

    assert eventually(fn ->
             {:current_stacktrace, stack} = Process.info(caller.pid, :current_stacktrace)
             Enum.any?(stack, &match?({Call, :late, _, _}, &1))
           end)

    send(server, ref)
    assert Task.await(caller) == {:ok, :slowly}
  end

  test "no such process, and one that ends: an answer, no exit", %{server: server} do
    assert {:error, {:ended, :noproc}} = Call.request(:nobody_is_called_this, :now, 5_000)

    ExUnit.CaptureLog.capture_log(fn ->
      assert {:error, {:ended, :kill_me}} = Call.request(server, :crash, 5_000)
    end)

    assert {:error, {:ended, :noproc}} = Call.request(server, :now, 5_000)
  end

  test "killed while the caller waits", %{server: server} do
    waiter = Task.async(fn -> Call.request(server, :later, 60_000) end)
    assert_receive {:began, :later, _}, 5_000
    kill(server)
    assert {:error, {:ended, :killed}} = Task.await(waiter)
  end

  test "R6.4 longer than a timer of the VM can wait", %{server: server} do
    assert Call.request(server, :now, 60 * 24 * 60 * 60 * 1000) == {:ok, {:did, :now}}
    assert Call.request(server, :now, :infinity) == {:ok, {:did, :now}}
  end

  test "a flag that is none is not taken" do
    for flag <- [nil, make_ref(), 1, :counters.new(1, [])], do: refute(Call.take(flag))
  end
end
