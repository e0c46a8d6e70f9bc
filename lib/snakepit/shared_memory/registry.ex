defmodule Snakepit.SharedMemory.Registry do
  @moduledoc false
  # Who owns which region, who has what mapped and who refers to it, on this node.
  #
  # Serial: the limits, and the bookkeeping when processes come and go. Reads are not here: they
  # look into the tables (`Table`) from the caller. No file is touched here: `Jobs` does that.
  #
  # It may be killed anywhere. Each change is one write to a table, or a write that `recover` can
  # complete; each call carries a reference by which the next registry knows what became of it, so
  # that callers (`RegistryCalls`) get the answer from that one.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Admission, Alerts, Call, Config, Error, Expiry, Jobs, Ledger}

  alias Snakepit.SharedMemory.{
    Limits,
    References,
    RegistryCalls,
    Table,
    Target,
    Telemetry,
    Waiting
  }

  alias Snakepit.SharedMemory.Table.Record

  def start_link(config) do
    GenServer.start_link(__MODULE__, config, name: __MODULE__)
  end

  defdelegate allocate(record, settings, operation), to: RegistryCalls
  defdelegate deallocate(target, operation), to: RegistryCalls
  defdelegate expire(key, guard), to: RegistryCalls
  defdelegate put_reader(key, reader, operation), to: RegistryCalls
  defdelegate drop_reader(key), to: RegistryCalls
  defdelegate map(target, mapping, operation), to: RegistryCalls
  defdelegate unmap(mapping, operation), to: RegistryCalls
  defdelegate refer(target, holder, operation), to: RegistryCalls
  defdelegate unrefer(target, holder, operation), to: RegistryCalls

  # jobs:     token => %{kind, key, from, monitor, operation}
  # monitors: monitor => {:job, token} | {:waiter, id}; those of processes are in the ledger
  # interrupted: tokens of allocations whose segments were being created when the registry before
  # this one was killed
  # told: which limits were said to be near, and when (`Alerts`)
  defstruct [:config, ledger: %Ledger{}, jobs: %{}, monitors: %{}, waiting: Waiting.new()] ++
              [interrupted: MapSet.new(), told: Alerts.new()]

  @type t :: %__MODULE__{}

  @doc "What the registry counts, together with the tables as they were at that moment."
  @spec audit(timeout()) :: {:ok, map()} | {:error, Call.failure()}
  def audit(timeout), do: Call.request(__MODULE__, :audit, timeout, at_once: true)

  @doc "The configuration of now; while the application starts, that which it starts with."
  @spec config(t()) :: Config.t()
  def config(state) do
    case Config.fetch(:registry) do
      {:ok, config} -> config
      {:error, _} -> state.config
    end
  end

  @impl true
  def init(config) do
    {:ok, %__MODULE__{config: Config.current(config)}, {:continue, :recover}}
  end

  # After a crash the tables are still there. Those who waited for a region that was being created
  # get an error, and its job will find that nobody takes the segment. What was being removed is
  # removed now.
  @impl true
  def handle_continue(:recover, state) do
    %{live: live, lost: lost} = found = Table.found()
    if lost != [], do: {:ok, _} = Jobs.clean_up(lost, [])
    Table.recover(found)
    Table.put_default_timeout(config(state).default_timeout)
    ledger = Ledger.rebuild(live, Table.all_mappings(), Table.all_references())
    for %{policy: :reference_counted} = record <- live, do: References.check(record.target.key)
    interrupted = for %{state: {:creating, token}} <- found.broken, into: MapSet.new(), do: token
    {:noreply, %{state | ledger: ledger, interrupted: interrupted}}
  end

  @impl true
  def handle_call({:by, flag, message}, from, state) do
    if Call.take(flag), do: handle_call(message, from, state), else: {:noreply, state}
  end

  def handle_call(:audit, _from, state) do
    {:reply, Map.merge(Ledger.audit(state.ledger), Table.snapshot()), state}
  end

  # What looks like a request and is none must not get into the tables: the next registry would
  # find it there as well.
  def handle_call(
        {:allocate, %Record{owner_pid: pid} = record, settings, operation, since},
        from,
        state
      )
      when is_pid(pid) and is_integer(since) do
    {:noreply, Admission.ask(state, record, settings, operation, since, from)}
  end

  # What became of an allocation whose registry did not live to answer. One that has only waited for
  # room is unknown here.
  def handle_call({:allocated, key, token}, _from, state) do
    with {:ok, %{token: ^token}} <- Table.record(key), {:ok, writer, _} <- Table.region(key) do
      {:reply, {:ok, writer}, state}
    else
      _ ->
        interrupted? = MapSet.member?(state.interrupted, token)
        {:reply, if(interrupted?, do: :interrupted, else: :unknown), state}
    end
  end

  def handle_call({:deallocate, %Target{key: key, id: id}, operation}, from, state) do
    with {:ok, _record} <- Table.record(key), {record, {writer, reader}} <- Table.ending(key) do
      token = make_ref()
      {:ok, pid} = Jobs.remove(self(), token, writer, reader)
      state = put_job(state, token, :remove, key, from, pid, operation)
      {:noreply, Admission.drain(gone(state, record))}
    else
      _ -> {:reply, {:error, Error.not_found(id, operation)}, state}
    end
  end

  # Removes a region of which `Expiry` has found that nobody uses it, if that still holds.
  def handle_call({:expire, key, guard}, _from, state) do
    with {:ok, record} <- Table.record(key),
         true <- References.expired?(record, guard) do
      {:reply, :removed, Admission.drain(remove(state, record))}
    else
      _ -> {:reply, :kept, state}
    end
  end

  def handle_call({:done, token, outcome}, _from, state) do
    case Map.pop(state.jobs, token) do
      {nil, _jobs} ->
        {:reply, :refused, state}

      {job, jobs} ->
        Process.demonitor(job.monitor, [:flush])
        state = %{state | jobs: jobs, monitors: Map.delete(state.monitors, job.monitor)}
        {verdict, answer, state} = finish(job, token, outcome, state)
        GenServer.reply(job.from, answer)
        {:reply, verdict, state}
    end
  end

  def handle_call({:put_reader, key, reader}, _from, state) do
    {:reply, Table.put_reader(key, reader), state}
  end

  def handle_call({:drop_reader, key}, _from, state) do
    {:reply, Table.count(key) == 0 and Table.drop_reader(key), state}
  end

  def handle_call({:map, ref, key, pid, reader, writer, token}, _from, state)
      when is_reference(ref) and is_pid(pid) and is_reference(reader) and
             (is_nil(token) or is_reference(token)) do
    cond do
      Table.mapping(ref) != nil -> {:reply, {:ok, ref}, state}
      # It was removed while it was being mapped.
      not there?(key, token) -> {:reply, :gone, state}
      true -> {:reply, {:ok, ref}, mapped(state, {ref, key, pid, reader, writer, token})}
    end
  end

  def handle_call({:unmap, ref, pid}, _from, state) when is_reference(ref) do
    case Table.mapping(ref) do
      {_ref, key, ^pid, _reader, _writer, _token} = mapping ->
        Table.take_mapping(ref)
        References.check(key)
        {:reply, {:ok, mapping}, change(state, &Ledger.let_go(&1, pid, key, ref))}

      _ ->
        {:reply, :not_mapped, state}
    end
  end

  def handle_call({:latest_mapping, key, pid}, _from, state) do
    {:reply, Ledger.mapping(state.ledger, pid, key), state}
  end

  def handle_call({:refer, %Target{} = target, holder, pid, token, operation}, _from, state)
      when is_pid(pid) do
    with {:ok, count} <- References.refer(target, holder, pid, token, operation) do
      {:reply, {:ok, count}, change(state, &Ledger.refer(&1, pid, target.key, holder))}
    else
      {:error, error} -> {:reply, {:error, error}, state}
    end
  end

  def handle_call({:unrefer, %Target{} = target, holder, token, again?, operation}, _from, state)
      when is_boolean(again?) do
    case References.unrefer(target, holder, token, again?, operation) do
      {:released, record} ->
        state = state |> disown(record) |> change(&Ledger.own(&1, %{record | owned: false}))
        {:reply, {:ok, Table.count(target.key)}, Admission.drain(state)}

      {:last, pid, count} ->
        {:reply, {:ok, count}, change(state, &Ledger.unrefer(&1, pid, target.key, holder))}

      answer ->
        {:reply, answer, state}
    end
  end

  # With other limits, who waits for room may have it now.
  def handle_call({:reconfigure, %Config{} = config}, _from, state) do
    Table.put_default_timeout(config.default_timeout)
    {:reply, :ok, Admission.reconsider(%{state | config: config, told: Alerts.new()})}
  end

  def handle_call(message, {pid, _tag}, state) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory registry: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, state}
  end

  @impl true
  # Its creator has stopped waiting. A creation under way finds that nobody takes the segment.
  def handle_cast({:abandon, key, token}, state) when is_reference(token) do
    case Table.reservation(key) do
      %{token: ^token} ->
        {record, resources} = Table.ending(key)
        if resources, do: undo(record, resources)
        {:noreply, Admission.drain(gone(state, record))}

      _ ->
        {:noreply, Admission.abandon(state, token)}
    end
  end

  def handle_cast(message, state), do: handle_info(message, state)

  @impl true
  def handle_info({:DOWN, monitor, :process, pid, reason}, state) do
    case Map.pop(state.monitors, monitor) do
      {{:job, token}, monitors} ->
        {:noreply, Admission.drain(crashed(token, reason, %{state | monitors: monitors}))}

      {{:waiter, id}, _monitors} ->
        {:noreply, Admission.drain(Admission.withdraw(state, id))}

      {nil, _monitors} ->
        {:noreply, Admission.drain(process_down(pid, monitor, state))}
    end
  end

  def handle_info({:timeout, timer, {:waited, id}}, state) when is_integer(id) do
    {:noreply, Admission.drain(Admission.time_out(state, id, timer))}
  end

  def handle_info(message, state) do
    Logger.warning("shared memory registry: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, state}
  end

  # What was adopted is still what it was to others.
  defp undo(%{adopted: true}, resources), do: {:ok, _} = Jobs.run(fn -> Jobs.leave(resources) end)
  defp undo(_record, resources), do: {:ok, _} = Jobs.clean_up([resources], [])

  # -- jobs -----------------------------------------------------------------------------------

  @doc false
  def put_job(state, token, kind, key, from, pid, operation) do
    monitor = Process.monitor(pid)
    job = %{kind: kind, key: key, from: from, monitor: monitor, operation: operation}
    monitors = Map.put(state.monitors, monitor, {:job, token})
    %{state | jobs: Map.put(state.jobs, token, job), monitors: monitors}
  end

  @doc false
  def take_in(state, record, writer, operation) do
    job = %{kind: :create, key: record.target.key, operation: operation}
    {_accepted, answer, state} = finish(job, record.token, {:ok, writer}, state)
    {answer, state}
  end

  # What the job is told (whether its segment was taken), what the caller is told, and the state.
  defp finish(%{kind: :create} = job, token, {:ok, writer}, state) do
    case Table.reserved(job.key, token) do
      {:ok, record} ->
        record = timed(%{record | state: :live}, config(state))
        Table.put_region(job.key, writer)
        Table.put_record(record)
        if record.timeout, do: Expiry.watch(job.key)
        {:accepted, {:ok, writer}, state}

      # The owner died while its region was being created.
      :error ->
        {:refused, {:error, owner_ended(job)}, state}
    end
  end

  defp finish(%{kind: :create} = job, token, {:error, failure}, state) do
    error = Error.from_native(failure, job.operation)
    {:accepted, {:error, error}, Admission.drain(forget(state, job, token))}
  end

  defp finish(%{kind: :remove}, _token, {:ok, :ok}, state), do: {:accepted, :ok, state}

  defp finish(%{kind: :remove} = job, _token, {:error, failure}, state) do
    {:accepted, {:error, Error.from_native(failure, job.operation)}, state}
  end

  # The configuration may have changed since its caller looked.
  defp timed(%{by_default: true} = record, config),
    do: %{record | timeout: config.default_timeout}

  defp timed(record, _config), do: record

  defp crashed(token, reason, state) do
    {job, jobs} = Map.pop(state.jobs, token)

    error =
      Error.new(:io, "work on the segment ended abnormally: #{inspect(reason, limit: 5)}",
        operation: job.operation,
        remedy: "call again; report it if it happens again"
      )

    GenServer.reply(job.from, {:error, error})
    forget(%{state | jobs: jobs}, job, token)
  end

  # Takes back what was reserved for a creation, unless it is another's by now.
  defp forget(state, job, token) do
    case job.kind == :create and Table.reserved(job.key, token) do
      {:ok, record} -> gone(state, record)
      _ -> state
    end
  end

  defp owner_ended(job) do
    Error.new(:closed, "the owner ended while its region was being created",
      operation: job.operation,
      remedy: "allocate it from a process that lives, or pass another owner"
    )
  end

  # -- processes ------------------------------------------------------------------------------

  defp there?(_key, nil), do: true
  defp there?(key, token), do: match?({:ok, %{token: ^token}}, Table.record(key))

  defp mapped(state, {ref, key, pid, _reader, _writer, token} = mapping) do
    Table.put_mapping(mapping)
    if token, do: References.unmark(key)
    change(state, &Ledger.hold(&1, pid, key, ref))
  end

  defp process_down(pid, monitor, state) do
    case Ledger.take(state.ledger, pid, monitor) do
      {nil, _ledger} ->
        state

      {process, ledger} ->
        {taken, kept} = References.owner_down(process.owned)
        refs = process.mapped |> Map.values() |> List.flatten()
        mappings = refs |> Enum.map(&Table.take_mapping/1) |> Enum.reject(&is_nil/1)
        for {key, holder} <- process.referred, do: Table.take_reference(key, holder)

        regions = for {_record, resources} <- taken, resources != nil, do: resources
        if regions != [] or mappings != [], do: {:ok, _} = Jobs.clean_up(regions, mappings)

        keys = Map.keys(process.mapped) ++ Enum.map(process.referred, &elem(&1, 0))
        Enum.each(Enum.uniq(keys), &References.check/1)
        Telemetry.owner_down(pid, length(taken), length(mappings))

        state = Enum.reduce(kept, %{state | ledger: ledger}, &orphan(&2, &1))
        Enum.reduce(taken, state, fn {record, _resources}, state -> gone(state, record) end)
    end
  end

  # The work is begun before the tables forget what it is about: who is killed in between leaves
  # it to be found there.
  defp remove(state, %{target: %{key: key}}) do
    {record, resources} = Table.ending(key)
    if resources, do: {:ok, _} = Jobs.clean_up([resources], [])
    gone(state, record)
  end

  # With it go the references to it, whoever holds them.
  defp gone(state, %{target: %{key: key}} = record) do
    Expiry.forget(record)

    record
    |> Table.forget()
    |> Enum.reduce(disown(state, record), fn {pid, holder}, state ->
      change(state, &Ledger.unrefer(&1, pid, key, holder))
    end)
  end

  defp orphan(state, record) do
    state |> change(&Ledger.orphan(&1, record)) |> Admission.eased(Limits.scopes(record))
  end

  defp disown(state, record) do
    state |> change(&Ledger.disown(&1, record)) |> Admission.eased(Limits.scopes(record))
  end

  defp change(state, change), do: %{state | ledger: change.(state.ledger)}
end
