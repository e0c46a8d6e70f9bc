defmodule Snakepit.SharedMemory.Jobs do
  @moduledoc false
  # Work on files that must be done to its end whoever dies: it runs in a task of ours, never in
  # the registry (which it would block) nor in the caller (which may be killed in the middle).

  alias Snakepit.SharedMemory.{Call, Error, Native, Table}

  @supervisor __MODULE__.Supervisor

  # How long the supervisor has to begin a job, which takes it microseconds.
  @answer_ms 1_000

  def child_spec(_options), do: Task.Supervisor.child_spec(name: @supervisor)

  @doc """
  Creates a segment and hands the outcome to `registry`, as the call `{:done, token, outcome}`.

  If the registry does not take the writer (it was restarted, or the owner has died meanwhile) the
  segment is removed again. `taken?` says what it has done when it did not live to say so itself.
  """
  @spec create(pid(), reference(), Native.segment(), (() -> boolean())) ::
          {:ok, pid()} | {:error, term()}
  def create(registry, token, segment, taken?) do
    start(fn ->
      hand_over(Native.create(segment), registry, token, taken?, &discard/1)
    end)
  end

  @doc "The same with a segment that nobody writes any more; not taken, it is left as it was found."
  @spec adopt(pid(), reference(), Native.segment(), (() -> boolean())) ::
          {:ok, pid()} | {:error, term()}
  def adopt(registry, token, segment, taken?) do
    start(fn ->
      hand_over(Native.adopt(segment), registry, token, taken?, &release/1)
    end)
  end

  defp hand_over(outcome, server, token, taken?, give_back) do
    case {outcome, deliver(server, token, outcome)} do
      {{:ok, writer}, :refused} -> give_back.(writer)
      {{:ok, writer}, :lost} -> if taken?.(), do: :ok, else: give_back.(writer)
      _error_or_accepted -> :ok
    end
  end

  @doc "Removes a segment and closes what was mapped of it, then tells `registry` the outcome."
  @spec remove(pid(), reference(), Native.writer(), Native.reader() | nil) ::
          {:ok, pid()} | {:error, term()}
  def remove(registry, token, writer, reader) do
    start(fn ->
      if reader, do: Native.close_reader(reader)
      deliver(registry, token, Native.discard(writer))
    end)
  end

  # Nothing tells that another OS process has given its claim back or died, so it is asked again
  # after a pause that grows up to this.
  @ask_again_ms 50

  @doc """
  Takes the place of a segment's writer as soon as there is none, up to `deadline`, and hands the
  outcome to `writers`, as `{:done, token, outcome}`; `taken?` as of `create/4`. The message `:stop`
  ends it sooner.
  """
  @spec take_over(pid(), reference(), Native.segment(), integer(), (() -> boolean())) ::
          {:ok, pid()} | {:error, term()}
  def take_over(writers, token, segment, deadline, taken?) do
    start(fn ->
      hand_over(keep_asking(segment, deadline, 1), writers, token, taken?, &release/1)
    end)
  end

  defp keep_asking(segment, deadline, pause) do
    with {:error, {:segment_busy, _, _, _}} = busy <- Native.attach_writer(segment) do
      left = deadline - System.monotonic_time(:millisecond)

      receive do
        :stop -> busy
        # Our supervisor ends.
        {:EXIT, _pid, _reason} -> busy
      after
        max(min(pause, left), 0) ->
          if left > 0,
            do: keep_asking(segment, deadline, min(pause * 2, @ask_again_ms)),
            else: busy
      end
    end
  end

  @doc "Has any other work on files done to its end."
  @spec run((() -> term())) :: {:ok, pid()} | {:error, term()}
  def run(work), do: start(work)

  @doc "Gives back what a process that died had owned and mapped."
  @spec clean_up([Table.resources()], [Table.mapping()]) ::
          {:ok, pid()} | {:error, term()}
  def clean_up(regions, mappings) do
    start(fn ->
      Enum.each(mappings, &unmap/1)
      Enum.each(regions, &discard_all/1)
    end)
  end

  @doc "Closes one mapping, and gives back the writer's claim that it may hold."
  @spec unmap(Table.mapping()) :: Native.answer(:ok)
  def unmap({_ref, _key, _pid, reader, writer, _token}) do
    if writer, do: release(writer)
    Native.close_reader(reader)
  end

  @doc "Leaves a region's segment to whoever takes it over next."
  @spec leave({Native.writer(), Native.reader() | nil}) :: :ok
  def leave({writer, reader}) do
    if reader, do: Native.close_reader(reader)
    release(writer)
  end

  @doc "Removes a region's segment, with a warning in the log when that fails."
  @spec discard_all(Table.resources()) :: :ok
  def discard_all({writer, reader}) do
    if reader, do: Native.close_reader(reader)
    discard(writer)
  end

  defp discard(writer), do: warn(Native.discard(writer))
  defp release(writer), do: warn(Native.release(writer))

  defp warn({:ok, :ok}), do: :ok

  # Somebody else has seen to it already: a registry that was killed had begun what the next one did.
  defp warn({:error, {:closed, _message, _segment, _remedy}}), do: :ok

  # Nobody waits for the answer: its line in the log is all there is of it.
  defp warn({:error, failure}) do
    Error.Log.note(Error.from_native(failure, :cleanup))
    :ok
  end

  defp deliver(server, token, outcome) do
    GenServer.call(server, {:done, token, outcome}, :infinity)
  catch
    :exit, _ -> :lost
  end

  # Exits are trapped, so that a supervisor that ends waits for the work instead of killing it in
  # the middle of a call that would go on and leave its segment to nobody. While the supervisor is
  # being restarted, or does not answer, nobody waits for it, but it is done: once, by whoever takes
  # the flag first.
  defp start(work) do
    flag = Call.flag()

    begin = fn ->
      if Call.take(flag) do
        Process.flag(:trap_exit, true)
        work.()
      end
    end

    case supervised(begin) do
      {:ok, pid} -> {:ok, pid}
      :error -> {:ok, spawn(begin)}
    end
  end

  # The registry calls this, so it must not wait for ever: another process asks, for as long as is
  # allowed.
  defp supervised(begin) do
    {asking, monitor} =
      spawn_monitor(fn ->
        options = [restart: :temporary, shutdown: 60_000]
        exit({:started, Task.Supervisor.start_child(@supervisor, begin, options)})
      end)

    receive do
      {:DOWN, ^monitor, :process, ^asking, {:started, {:ok, pid}}} -> {:ok, pid}
      {:DOWN, ^monitor, :process, ^asking, _no_supervisor} -> :error
    after
      @answer_ms ->
        Process.demonitor(monitor, [:flush])
        Process.exit(asking, :kill)
        :error
    end
  end
end
