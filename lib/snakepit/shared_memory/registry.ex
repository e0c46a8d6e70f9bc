defmodule Snakepit.SharedMemory.Registry do
  @moduledoc false
  # Who owns which region and who has what mapped, on this node.
  #
  # Serial: the limits, and the bookkeeping when processes come and go. Reads are not here: they
  # look into the tables (`Table`) from the caller. No file is touched here: `Jobs` does that.

  use GenServer

  require Logger

  alias Snakepit.SharedMemory.{Call, Config, Error, Jobs, Table, Target, Telemetry}
  alias Snakepit.SharedMemory.Table.Record

  # -- client ---------------------------------------------------------------------------------

  def start_link(config) do
    GenServer.start_link(__MODULE__, config, name: __MODULE__)
  end

  @doc "Counts the region in, creates its segment with `settings`, and makes it known."
  @spec allocate(Record.t(), map(), atom()) :: {:ok, reference()} | {:error, Error.t()}
  def allocate(record, settings, operation) do
    record = %{record | request: make_ref()}
    call({:allocate, record, settings, operation}, operation, at_once: false)
  end

  @doc "Forgets a region of this node and removes its segment."
  @spec deallocate(Target.t(), atom()) :: :ok | {:error, Error.t()}
  def deallocate(target, operation) do
    call({:deallocate, target, operation}, operation, at_once: false)
  end

  @doc "Keeps a reader for reads by id, unless there is one."
  @spec put_reader(Target.key(), reference(), atom()) :: boolean() | {:error, Error.t()}
  def put_reader(key, reader, operation), do: call({:put_reader, key, reader}, operation)

  @doc "Notes that the caller holds a mapping; it is given back when the caller dies."
  @spec map(Target.t(), reference(), reference() | nil, atom()) ::
          {:ok, reference()} | {:error, Error.t()}
  def map(target, reader, writer, operation) do
    call({:map, target.key, self(), reader, writer}, operation)
  end

  @doc "Forgets a mapping of the caller, by its reference or the latest one of a region."
  @spec unmap(reference() | Target.key(), atom()) ::
          {:ok, Table.mapping()} | :not_mapped | {:error, Error.t()}
  def unmap(mapping, operation), do: call({:unmap, mapping, self()}, operation)

  @doc "What the registry counts, together with the tables as they were at that moment."
  @spec audit(timeout()) :: {:ok, map()} | {:error, Call.failure()}
  def audit(timeout), do: Call.request(__MODULE__, :audit, timeout, at_once: true)

  # An exit of the registry is an answer like any other to those who call it, and so is its silence.
  defp call(message, operation, opts \\ [at_once: true]) do
    with {:ok, %{call_timeout: timeout}} <- Config.fetch(operation) do
      case Call.request(__MODULE__, message, timeout, opts) do
        {:ok, answer} -> answer
        {:error, {:ended, reason}} -> {:error, gone(reason, operation)}
        {:error, why} -> {:error, silent(why, message, timeout, operation)}
      end
    end
  end

  defp silent(:untouched, _message, timeout, operation) do
    Error.new(:timeout, "the registry did not answer within #{timeout} ms; nothing was done",
      operation: operation,
      remedy: "call again; if it happens again, see what health_check/0 says"
    )
  end

  # A region that nobody was told of must not stay.
  defp silent(:under_way, {:allocate, record, _settings, _operation}, timeout, operation) do
    GenServer.cast(__MODULE__, {:abandon, record.target.key, record.request})

    Error.new(:timeout, "the region was not ready within #{timeout} ms, and is given up",
      region: record.target.id,
      operation: operation,
      remedy: "call again, or raise :call_timeout; the memory file system may be slow or full"
    )
  end

  defp silent(:under_way, {:deallocate, target, _operation}, timeout, operation) do
    Error.new(:timeout, "the region was not removed within #{timeout} ms; that goes on",
      region: target.id,
      operation: operation,
      remedy: "nobody finds it any more; its memory goes when the work is done"
    )
  end

  defp gone(reason, operation) do
    with {:ok, _config} <- Config.fetch(operation) do
      Error.new(:closed, "the registry ended before it answered: #{inspect(reason, limit: 5)}",
        operation: operation,
        remedy: "call again; it is restarted and knows all regions it knew"
      )
    else
      {:error, not_running} -> not_running
    end
  end

  # -- server ---------------------------------------------------------------------------------

  # processes: pid => %{monitor, owned: set of keys, mapped: %{mapping ref => key}}
  # jobs:      token => %{kind, key, from, monitor, operation}
  # regions, bytes: in all, those being created included
  defstruct [:config, processes: %{}, jobs: %{}, regions: 0, bytes: 0]

  @impl true
  def init(config) do
    {:ok, %__MODULE__{config: config}, {:continue, :recover}}
  end

  # After a crash the tables are still there. Those who waited for a region that was being created
  # got an error, and its job will find that nobody takes the segment.
  @impl true
  def handle_continue(:recover, state) do
    {live, creating} = Enum.split_with(Table.records(), &(&1.state == :live))
    Enum.each(creating, &Table.take(&1.target.key))
    state = Enum.reduce(live, state, &own(&2, &1))

    mapped = fn {ref, key, pid, _reader, _writer}, state -> hold(state, pid, ref, key) end
    {:noreply, Enum.reduce(Table.all_mappings(), state, mapped)}
  end

  @impl true
  def handle_call({:by, flag, message}, from, state) do
    if Call.take(flag), do: handle_call(message, from, state), else: {:noreply, state}
  end

  def handle_call(:audit, _from, state) do
    counted = Map.take(state, [:regions, :bytes, :processes])
    {:reply, Map.merge(counted, Table.snapshot()), state}
  end

  def handle_call({:allocate, record, settings, operation}, from, state) do
    with :ok <- unused(record, operation), :ok <- within_limits(record, operation, state) do
      token = make_ref()
      Table.put_record(%{record | state: {:creating, token}})
      {:ok, pid} = Jobs.create(self(), token, Target.native(record.target, settings))
      job = job(:create, record.target.key, from, pid, operation)
      {:noreply, put_in(own(state, record).jobs[token], job)}
    else
      {:error, error} -> {:reply, {:error, error}, state}
    end
  end

  def handle_call({:deallocate, %{key: key, id: id}, operation}, from, state) do
    with {:ok, _record} <- Table.record(key), {record, {writer, reader}} <- Table.take(key) do
      token = make_ref()
      {:ok, pid} = Jobs.remove(self(), token, writer, reader)

      job = job(:remove, key, from, pid, operation)
      {:noreply, put_in(disown(state, record).jobs[token], job)}
    else
      _ -> {:reply, {:error, Error.not_found(id, operation)}, state}
    end
  end

  def handle_call({:done, token, outcome}, _from, state) do
    case pop_in(state.jobs[token]) do
      {nil, state} ->
        {:reply, :refused, state}

      {job, state} ->
        Process.demonitor(job.monitor, [:flush])
        {verdict, answer, state} = finish(job, token, outcome, state)
        GenServer.reply(job.from, answer)
        {:reply, verdict, state}
    end
  end

  def handle_call({:put_reader, key, reader}, _from, state) do
    {:reply, Table.put_reader(key, reader), state}
  end

  def handle_call({:map, key, pid, reader, writer}, _from, state) do
    ref = make_ref()
    Table.put_mapping({ref, key, pid, reader, writer})
    {:reply, {:ok, ref}, hold(state, pid, ref, key)}
  end

  def handle_call({:unmap, ref, pid}, _from, state) when is_reference(ref) do
    case Table.mapping(ref) do
      {_ref, _key, ^pid, _reader, _writer} = mapping ->
        Table.take_mapping(ref)
        {:reply, {:ok, mapping}, let_go(state, pid, ref)}

      _ ->
        {:reply, :not_mapped, state}
    end
  end

  def handle_call({:unmap, key, pid}, from, state) do
    held = get_in(state.processes, [pid, :mapped]) || %{}

    case Enum.find(held, fn {_ref, held_key} -> held_key == key end) do
      nil -> {:reply, :not_mapped, state}
      {ref, _key} -> handle_call({:unmap, ref, pid}, from, state)
    end
  end

  def handle_call(message, {pid, _tag}, state) do
    shown = inspect(message, limit: 5)
    Logger.warning("shared memory registry: unexpected call from #{inspect(pid)}: #{shown}")
    {:reply, {:error, :unexpected}, state}
  end

  # Its creator has stopped waiting. A creation under way finds that nobody takes the segment.
  @impl true
  def handle_cast({:abandon, key, request}, state) do
    if Table.requested?(key, request) do
      {record, resources} = Table.take(key)
      if resources, do: {:ok, _} = Jobs.clean_up([resources], [])
      {:noreply, disown(state, record)}
    else
      {:noreply, state}
    end
  end

  def handle_cast(message, state), do: handle_info(message, state)

  @impl true
  def handle_info({:DOWN, monitor, :process, pid, reason}, state) do
    case Enum.find(state.jobs, fn {_token, job} -> job.monitor == monitor end) do
      {token, job} -> {:noreply, crashed(token, job, reason, state)}
      nil -> {:noreply, process_down(pid, state)}
    end
  end

  def handle_info(message, state) do
    Logger.warning("shared memory registry: unexpected message: #{inspect(message, limit: 5)}")
    {:noreply, state}
  end

  # -- limits ---------------------------------------------------------------------------------

  defp unused(%{target: target}, operation) do
    if Table.known?(target.key) do
      {:error,
       Error.new(:already_exists, "region already exists: #{target.id}",
         region: target.id,
         operation: operation,
         remedy: "choose another name, or deallocate the region first"
       )}
    else
      :ok
    end
  end

  defp within_limits(record, operation, %{config: config} = state) do
    cond do
      state.regions >= config.max_regions ->
        {:error, exhausted(record, operation, "regions", 1, 0, :max_regions)}

      state.bytes + record.bytes > config.max_total_memory ->
        free = max(config.max_total_memory - state.bytes, 0)
        {:error, exhausted(record, operation, "bytes", record.bytes, free, :max_total_memory)}

      true ->
        :ok
    end
  end

  defp exhausted(record, operation, what, needed, available, limit) do
    Error.new(
      :resource_exhausted,
      "limit #{inspect(limit)} reached: needed #{needed} #{what}, available #{available}",
      region: record.target.id,
      operation: operation,
      remedy: "deallocate regions that are not needed, or raise #{inspect(limit)}"
    )
  end

  # -- jobs -----------------------------------------------------------------------------------

  defp job(kind, key, from, pid, operation) do
    %{kind: kind, key: key, from: from, monitor: Process.monitor(pid), operation: operation}
  end

  # What the job is told (whether its segment was taken), what the caller is told, and the state.
  defp finish(%{kind: :create} = job, token, {:ok, writer}, state) do
    case Table.reserved(job.key, token) do
      {:ok, record} ->
        Table.put_region(job.key, writer)
        Table.put_record(%{record | state: :live})
        {:accepted, {:ok, writer}, state}

      # The owner died while its region was being created.
      :error ->
        {:refused, {:error, owner_ended(job)}, state}
    end
  end

  defp finish(%{kind: :create} = job, token, {:error, failure}, state) do
    {:accepted, {:error, Error.from_native(failure, job.operation)}, forget(state, job, token)}
  end

  defp finish(%{kind: :remove}, _token, {:ok, :ok}, state), do: {:accepted, :ok, state}

  defp finish(%{kind: :remove} = job, _token, {:error, failure}, state) do
    {:accepted, {:error, Error.from_native(failure, job.operation)}, state}
  end

  defp crashed(token, job, reason, state) do
    {_job, state} = pop_in(state.jobs[token])

    error =
      Error.new(:io, "work on the segment ended abnormally: #{inspect(reason, limit: 5)}",
        operation: job.operation,
        remedy: "call again; report it if it happens again"
      )

    GenServer.reply(job.from, {:error, error})
    forget(state, job, token)
  end

  # Takes back what was reserved for a creation, unless it is another's by now.
  defp forget(state, job, token) do
    case job.kind == :create and Table.reserved(job.key, token) do
      {:ok, record} ->
        Table.take(job.key)
        disown(state, record)

      _ ->
        state
    end
  end

  defp owner_ended(job) do
    Error.new(:closed, "the owner ended while its region was being created",
      operation: job.operation,
      remedy: "allocate it from a process that lives, or pass another owner"
    )
  end

  # -- processes ------------------------------------------------------------------------------

  defp process_down(pid, state) do
    case pop_in(state.processes[pid]) do
      {nil, state} ->
        state

      {process, state} ->
        taken = process.owned |> Enum.map(&Table.take/1) |> Enum.reject(&is_nil/1)
        regions = for {_record, resources} <- taken, resources != nil, do: resources
        mappings = process.mapped |> Map.keys() |> Enum.map(&Table.take_mapping/1)

        if regions != [] or mappings != [], do: {:ok, _} = Jobs.clean_up(regions, mappings)
        Telemetry.owner_down(pid, length(taken), length(mappings))
        Enum.reduce(taken, state, fn {record, _resources}, state -> uncount(state, record) end)
    end
  end

  defp own(state, record) do
    add = &%{&1 | owned: MapSet.put(&1.owned, record.target.key)}
    state = update_process(state, record.owner_pid, add)
    %{state | regions: state.regions + 1, bytes: state.bytes + record.bytes}
  end

  defp disown(state, record) do
    drop = &%{&1 | owned: MapSet.delete(&1.owned, record.target.key)}
    state |> update_process(record.owner_pid, drop) |> uncount(record)
  end

  defp uncount(state, record) do
    %{state | regions: state.regions - 1, bytes: state.bytes - record.bytes}
  end

  defp hold(state, pid, ref, key) do
    update_process(state, pid, &%{&1 | mapped: Map.put(&1.mapped, ref, key)})
  end

  defp let_go(state, pid, ref) do
    update_process(state, pid, &%{&1 | mapped: Map.delete(&1.mapped, ref)})
  end

  # A process is monitored as long as it owns or maps something.
  defp update_process(state, pid, change) do
    process = change.(state.processes[pid] || watch(pid))

    if process.mapped == %{} and MapSet.size(process.owned) == 0 do
      Process.demonitor(process.monitor, [:flush])
      %{state | processes: Map.delete(state.processes, pid)}
    else
      %{state | processes: Map.put(state.processes, pid, process)}
    end
  end

  defp watch(pid), do: %{monitor: Process.monitor(pid), owned: MapSet.new(), mapped: %{}}
end
