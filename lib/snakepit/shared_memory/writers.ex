defmodule Snakepit.SharedMemory.Writers do
  @moduledoc false
  # The queue for the exclusive right to write, one for each region, first come first served.
  #
  # Who has the right is in a table that belongs to the application's own process, so that a crash of
  # this one takes it from nobody: the new one finds the holders there and watches them again. Those
  # who waited get an error at once, for their calls end with the process.
  #
  #   {key, pid, ref, what, kind}
  #     :held    - `what` is a writer of this VM; the NIF refuses every other process
  #     :taken   - a writer that was taken over from outside for this time; it is given back
  #     :asking  - `what` is the job that waits for the other OS process's claim
  #
  # A right is given back first and its row deleted then: whoever is killed in between leaves a row,
  # and its right is given back again, which changes nothing.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Call, Error, Jobs, Native, Table, Target}

  @table :snakepit_shm_writers

  @type kind :: :held | :taken | :asking
  @type row :: {Target.key(), pid(), reference(), Native.writer() | pid(), kind()}

  # -- the table ------------------------------------------------------------------------------

  @spec create_table() :: :ok
  def create_table do
    :ets.new(@table, [:named_table, :public, :set, read_concurrency: true])
    :ok
  end

  @doc "Who has the right to write, if anybody."
  @spec holder(Target.key()) :: row() | nil
  def holder(key) do
    List.first(:ets.lookup(@table, key))
  rescue
    ArgumentError -> nil
  end

  @doc "Those who had a right when they ended; the queue is about to take it back."
  @spec left_behind() :: [row()]
  def left_behind do
    for {_, pid, _, _, _} = row <- :ets.tab2list(@table), not Process.alive?(pid), do: row
  rescue
    ArgumentError -> []
  end

  @doc "Gives back what processes of this VM took over from outside, when the application ends."
  @spec give_back_all() :: :ok
  def give_back_all, do: @table |> :ets.tab2list() |> Enum.each(&give_back/1)

  # -- client ---------------------------------------------------------------------------------

  def start_link(opts), do: GenServer.start_link(__MODULE__, opts, name: __MODULE__)

  @doc """
  Waits for the right to write until `timeout`. `writer` is that of a mapping, or nil for the
  region of that name; `ref` is the caller's, to give it back by.
  """
  @spec acquire(Target.t(), Native.writer() | nil, reference(), non_neg_integer(), atom()) ::
          {:ok, Native.writer(), kind()}
          | {:error, Error.t()}
          | {:timeout, row() | nil}
          | {:ended, term()}
  def acquire(target, writer, ref, timeout, operation) do
    deadline = System.monotonic_time(:millisecond) + timeout
    message = {:acquire, target, writer, ref, deadline, operation}

    case Call.request(__MODULE__, message, timeout) do
      {:ok, answer} ->
        answer

      {:error, why} ->
        holder = holder(target.key)
        # It may have been given to us just now.
        release(target.key, ref)
        if match?({:ended, _}, why), do: why, else: {:timeout, holder}
    end
  end

  @doc "Gives the right back, or up waiting for it; without the queue as well as with it."
  @spec release(Target.key(), reference()) :: :ok
  def release(key, ref) do
    with {_key, _pid, ^ref, _what, _kind} = row <- holder(key), do: give_back(row)
    GenServer.cast(__MODULE__, {:released, key, ref})
  end

  defp give_back({key, pid, ref, what, kind}) do
    case kind do
      :held -> Native.free_writer(what, pid)
      :taken -> Native.release(what)
      :asking -> send(what, :stop)
    end

    # Only this row: another's may have its place by now.
    :ets.select_delete(@table, [{{key, pid, ref, :_, :_}, [], [true]}])
    :ok
  rescue
    # The application has ended, and its tables with it.
    ArgumentError -> :ok
  end

  # -- server ---------------------------------------------------------------------------------

  # queues:  key => :queue of waiters, never empty
  # watched: ref => monitor, of waiters and holders
  # asking:  ref => from, of those for whom a job waits
  defstruct queues: %{}, watched: %{}, asking: %{}

  @impl true
  def init(_opts), do: {:ok, %__MODULE__{}, {:continue, :recover}}

  @impl true
  def handle_continue(:recover, state) do
    # Nobody is waiting any more for what a job asks for.
    {asking, held} = Enum.split_with(:ets.tab2list(@table), &(elem(&1, 4) == :asking))
    Enum.each(asking, &give_back/1)

    {:noreply,
     Enum.reduce(held, state, fn {key, pid, ref, _, _}, s -> watch(s, key, pid, ref) end)}
  end

  @impl true
  def handle_call({:by, flag, message}, from, state) do
    if Call.take(flag), do: handle_call(message, from, state), else: {:noreply, state}
  end

  def handle_call(
        {:acquire, %Target{} = target, writer, ref, deadline, operation},
        {pid, _} = from,
        state
      )
      when is_reference(ref) and is_integer(deadline) do
    waiter = %{
      target: target,
      writer: writer,
      pid: pid,
      ref: ref,
      from: from,
      deadline: deadline,
      operation: operation
    }

    queue = Map.get(state.queues, target.key, :queue.new())
    state = put_in(state.queues[target.key], :queue.in(waiter, queue))
    {:noreply, state |> watch(target.key, pid, ref) |> serve(target.key)}
  end

  # A job has the writer of another OS process, or could not get it.
  def handle_call({:done, ref, outcome}, _from, state) do
    case Map.pop(state.asking, ref) do
      {nil, _asking} ->
        {:reply, :refused, state}

      {waiter, asking} ->
        {verdict, state} = taken(outcome, waiter, %{state | asking: asking})
        {:reply, verdict, state}
    end
  end

  def handle_call(message, {pid, _tag}, state) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory writers: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, state}
  end

  @impl true
  def handle_cast({:released, key, ref}, state), do: {:noreply, forget(state, key, ref)}
  def handle_cast(message, state), do: handle_info(message, state)

  @impl true
  def handle_info({{:ended, key, ref}, _monitor, :process, _pid, _reason}, state) do
    {:noreply, forget(state, key, ref)}
  end

  def handle_info(message, state) do
    Logger.warning("shared memory writers: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, state}
  end

  # -- the queue ------------------------------------------------------------------------------

  defp watch(state, key, pid, ref) do
    # The message says whose end it is: thousands may end at once, and none is searched for.
    put_in(state.watched[ref], :erlang.monitor(:process, pid, tag: {:ended, key, ref}))
  end

  # A holder that has released or died, or a waiter that has given up or died.
  defp forget(state, key, ref) do
    with {_key, _pid, ^ref, _what, _kind} = row <- holder(key), do: give_back_behind(row)

    state |> unwatch(ref) |> unqueue(key, ref) |> serve(key)
  end

  defp unwatch(state, ref) do
    {monitor, state} = pop_in(state.watched[ref])
    if monitor, do: Process.demonitor(monitor, [:flush])
    %{state | asking: Map.delete(state.asking, ref)}
  end

  defp unqueue(state, key, ref) do
    case state.queues do
      %{^key => queue} -> put_queue(state, key, :queue.filter(&(&1.ref != ref), queue))
      _ -> state
    end
  end

  defp put_queue(state, key, queue) do
    if :queue.is_empty(queue),
      do: %{state | queues: Map.delete(state.queues, key)},
      else: put_in(state.queues[key], queue)
  end

  # Work on files is not for this process. The row stays until it is done, and with it the claim.
  defp give_back_behind({key, _pid, ref, _what, :taken} = row) do
    server = self()

    {:ok, _} =
      Jobs.run(fn ->
        give_back(row)
        GenServer.cast(server, {:released, key, ref})
      end)
  end

  defp give_back_behind(row), do: give_back(row)

  # The first who waits gets what nobody has.
  defp serve(state, key) do
    with nil <- holder(key), %{^key => queue} <- state.queues do
      {{:value, waiter}, queue} = :queue.out(queue)
      state |> put_queue(key, queue) |> grant(waiter)
    else
      _ -> state
    end
  end

  defp grant(state, waiter) do
    case writer(waiter) do
      {:ok, writer} ->
        insert(waiter, writer, :held)
        held(Native.hold_writer(writer, waiter.pid), writer, :held, waiter, state)

      :elsewhere ->
        segment = Target.native(waiter.target)
        {:ok, job} = Jobs.take_over(self(), waiter.ref, segment, waiter.deadline)
        insert(waiter, job, :asking)
        put_in(state.asking[waiter.ref], waiter)

      {:error, error} ->
        refuse(state, waiter, error)
    end
  end

  defp writer(%{writer: nil} = waiter) do
    case Table.region(waiter.target.key) do
      {:ok, writer, _reader} -> {:ok, writer}
      :error -> :elsewhere
      :not_started -> {:error, Error.not_started(waiter.operation)}
    end
  end

  defp writer(%{writer: writer}), do: {:ok, writer}

  defp insert(waiter, what, kind) do
    :ets.insert(@table, {waiter.target.key, waiter.pid, waiter.ref, what, kind})
  end

  defp held({:ok, :ok}, writer, kind, waiter, state) do
    GenServer.reply(waiter.from, {:ok, writer, kind})
    state
  end

  defp held({:error, failure}, _writer, _kind, waiter, state) do
    refuse(state, waiter, Error.from_native(failure, waiter.operation, waiter.target.id))
  end

  defp taken({:ok, writer}, waiter, state) do
    insert(waiter, writer, :taken)
    {:accepted, held(Native.hold_writer(writer, waiter.pid), writer, :taken, waiter, state)}
  end

  defp taken({:error, failure}, waiter, state) do
    error = Error.from_native(failure, waiter.operation, waiter.target.id)
    {:accepted, refuse(state, waiter, error)}
  end

  defp refuse(state, waiter, error) do
    GenServer.reply(waiter.from, {:error, error})
    forget(state, waiter.target.key, waiter.ref)
  end
end
