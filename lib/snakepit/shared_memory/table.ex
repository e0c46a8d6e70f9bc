defmodule Snakepit.SharedMemory.Table do
  @moduledoc false
  # The ETS tables of the registry, read by everybody.
  #
  # They belong to the application's own process, so that they outlive a crash of the registry,
  # which finds its regions again in them. Hence `:public`; only the registry writes.
  #
  #   regions   {key, writer, reader | nil}             what a read or write by id needs
  #   records   {key, %Record{}}                        the rest about the regions of this node
  #   mappings  {ref, key, pid, reader, writer | nil}   who holds what mapped; the writer if it is the mapping's own
  #   references {{key, holder}, pid, n, token}         references without a mapping, whose death ends them, the last change
  #   counts    {key, n}                                how many mappings and references there are for a region
  #   leases    {{kind, id}}                            sessions and workers that were known to be there
  #   uses      {key, n}                                uses that leave no other trace, of regions with a timeout

  alias Snakepit.SharedMemory.{History, Native, Recorder, Target}

  @regions :snakepit_shm_regions
  @records :snakepit_shm_records
  @mappings :snakepit_shm_mappings
  @counts :snakepit_shm_counts
  @references :snakepit_shm_references
  @uses :snakepit_shm_uses
  @leases :snakepit_shm_leases

  defmodule Record do
    @moduledoc false
    @enforce_keys [:target, :size, :bytes, :slots, :owner_pid, :metadata, :state]
    # token: which allocation it is; owned: whether the owner's reference counts; marked: since when
    # (monotonic milliseconds) nobody refers to it.
    defstruct @enforce_keys ++
                [
                  :token,
                  :access_mode,
                  :timeout,
                  :session,
                  :worker,
                  :marked,
                  policy: :automatic,
                  permissions: 0o600,
                  tags: [],
                  owned: true
                ]

    @type t :: %__MODULE__{
            target: Target.t(),
            size: pos_integer(),
            bytes: pos_integer(),
            slots: pos_integer(),
            owner_pid: pid(),
            metadata: map(),
            state: :live | {:creating, reference()},
            token: reference() | nil,
            access_mode: :read_only | :read_write | nil,
            timeout: pos_integer() | nil,
            session: String.t() | nil,
            worker: String.t() | nil,
            marked: integer() | nil,
            policy: :automatic | :manual | :reference_counted,
            permissions: non_neg_integer(),
            tags: [String.t()],
            owned: boolean()
          }
  end

  @type mapping :: {reference(), Target.key(), pid(), Native.reader(), Native.writer() | nil}

  @spec create() :: :ok
  def create do
    options = [:public, :set, read_concurrency: true]
    tables = [@records, @mappings, @counts, @references, @uses, @leases]
    Enum.each(tables, &:ets.new(&1, [:named_table | options]))
    :persistent_term.put(@regions, :ets.new(@regions, options))
  end

  @doc "Leaves nothing behind when the application has ended; the tables go with its process."
  @spec forget() :: boolean()
  def forget, do: :persistent_term.erase(@regions)

  # Reads by id look here first. A name would be looked up in a table of its own, under a lock;
  # without the application this is no table, and looking into it an ArgumentError.
  defp regions, do: :persistent_term.get(@regions, nil)

  # -- reads, in the caller -------------------------------------------------------------------

  @doc "Writer and cached reader of a region of this node."
  @spec region(Target.key()) ::
          {:ok, Native.writer(), Native.reader() | nil} | :error | :not_started
  def region(key) do
    case :ets.lookup(regions(), key) do
      [{_key, writer, reader}] -> {:ok, writer, reader}
      [] -> :error
    end
  rescue
    ArgumentError -> :not_started
  end

  # The hot path: one element, for each copy of a resource's term counts a reference.

  @doc "The writer of a region of this node, nil when there is none."
  @spec writer(Target.key()) :: Native.writer() | nil
  def writer(key), do: element(key, 2)

  @doc "The cached reader of a region of this node, nil when there is none (yet)."
  @spec reader(Target.key()) :: Native.reader() | nil
  def reader(key), do: element(key, 3)

  defp element(key, position) do
    :ets.lookup_element(regions(), key, position)
  rescue
    ArgumentError -> nil
  end

  @spec record(Target.key()) :: {:ok, Record.t()} | :error
  def record(key) do
    case safe_lookup(@records, key) do
      [{_key, %Record{state: :live} = record}] -> {:ok, record}
      _ -> :error
    end
  end

  @doc "Mappings and references of a region; the owner's is not among them."
  @spec count(Target.key()) :: non_neg_integer()
  def count(key) do
    case safe_lookup(@counts, key) do
      [{_key, count}] -> count
      [] -> 0
    end
  end

  @doc "Who holds references without a mapping: `{holder, pid, n}`."
  @spec references(Target.key()) :: [{pid() | reference(), pid(), pos_integer()}]
  def references(key) do
    for {{_key, holder}, pid, n, _token} <-
          :ets.match_object(@references, {{key, :_}, :_, :_, :_}) do
      {holder, pid, n}
    end
  rescue
    ArgumentError -> []
  end

  @doc "The mappings of a region; looks at all there are."
  @spec mappings(Target.key()) :: [mapping()]
  def mappings(key) do
    :ets.match_object(@mappings, {:_, key, :_, :_, :_})
  rescue
    ArgumentError -> []
  end

  @doc "Notes a use that leaves no other trace, where somebody wants to know."
  @spec used(Target.key()) :: :ok
  def used(key) do
    if :ets.member(@uses, key), do: :ets.update_counter(@uses, key, 1)
    :ok
  rescue
    # It went in between, or the application is not running.
    ArgumentError -> :ok
  end

  @doc "How often a use was noted."
  @spec uses(Target.key()) :: non_neg_integer()
  def uses(key) do
    case safe_lookup(@uses, key) do
      [{_key, n}] -> n
      [] -> 0
    end
  end

  @doc "The records that `wanted?` holds for, whatever their state."
  @spec records((Record.t() -> boolean())) :: [Record.t()]
  def records(wanted?) do
    :ets.foldl(
      fn {_key, record}, found -> if wanted?.(record), do: [record | found], else: found end,
      [],
      @records
    )
  rescue
    ArgumentError -> []
  end

  defp safe_lookup(table, key) do
    :ets.lookup(table, key)
  rescue
    ArgumentError -> []
  end

  @spec put_lease({atom(), String.t()}) :: true
  def put_lease(lease), do: :ets.insert(@leases, {lease})

  @spec lease?({atom(), String.t()}) :: boolean()
  def lease?(lease), do: safe_lookup(@leases, lease) != []

  @spec leases() :: [{atom(), String.t()}]
  def leases, do: Enum.map(:ets.tab2list(@leases), &elem(&1, 0))

  @spec forget_lease({atom(), String.t()}) :: true
  def forget_lease(lease), do: :ets.delete(@leases, lease)

  # -- the registry's own ---------------------------------------------------------------------

  @spec records() :: [Record.t()]
  def records, do: Enum.map(:ets.tab2list(@records), &elem(&1, 1))

  @doc "The record of a region that is being created by the job `token`."
  @spec reserved(Target.key(), reference()) :: {:ok, Record.t()} | :error
  def reserved(key, token) do
    case :ets.lookup(@records, key) do
      [{_key, %Record{state: {:creating, ^token}} = record}] -> {:ok, record}
      _ -> :error
    end
  end

  @doc "The record of a region, whether it is there already or being created."
  @spec reservation(Target.key()) :: Record.t() | nil
  def reservation(key) do
    with [{_key, record}] <- safe_lookup(@records, key), do: record, else: ([] -> nil)
  end

  @spec known?(Target.key()) :: boolean()
  def known?(key), do: :ets.member(@records, key)

  @doc "All that the tables say, for an audit."
  @spec snapshot() :: %{required(atom()) => list()}
  def snapshot do
    %{
      records: records(),
      live: :ets.select(regions(), [{{:"$1", :_, :_}, [], [:"$1"]}]),
      mappings:
        :ets.select(@mappings, [{{:"$1", :"$2", :"$3", :_, :_}, [], [{{:"$1", :"$2", :"$3"}}]}]),
      references: for({{key, _holder}, _pid, n, _token} <- all_references(), do: {key, n}),
      counts: :ets.tab2list(@counts)
    }
  end

  @doc "Whether a region is of this node, or held by a process of it."
  @spec held?(Target.key()) :: boolean()
  def held?(key) do
    :ets.member(@records, key) or :ets.member(@counts, key)
  rescue
    ArgumentError -> false
  end

  @spec put_record(Record.t()) :: true
  def put_record(record) do
    if record.timeout, do: :ets.insert_new(@uses, {record.target.key, 0})
    :ets.insert(@records, {record.target.key, record})
  end

  @doc "Makes a region known; its record is there."
  @spec put_region(Target.key(), Native.writer()) :: true
  def put_region(key, writer) do
    [{_key, record}] = :ets.lookup(@records, key)
    Recorder.event(:allocated)
    # Somebody may still hold a mapping of an earlier region of this name.
    History.forget(key)
    History.add(key, :allocate, record.owner_pid, %{size: record.size, slots: record.slots})
    :ets.insert(regions(), {key, writer, nil})
  end

  @doc "Caches a reader unless there is one already."
  @spec put_reader(Target.key(), Native.reader()) :: boolean()
  def put_reader(key, reader) do
    match?({:ok, _, nil}, region(key)) and :ets.update_element(regions(), key, {3, reader})
  end

  @doc "Forgets the cached reader; the next read by id attaches another."
  @spec drop_reader(Target.key()) :: boolean()
  def drop_reader(key), do: :ets.update_element(regions(), key, {3, nil})

  @doc "Forgets a region; its writer and reader, if it was live, and its record."
  @spec take(Target.key()) :: {Record.t(), {Native.writer(), Native.reader() | nil} | nil} | nil
  def take(key) do
    case :ets.take(@records, key) do
      [{_key, record}] ->
        if record.timeout, do: :ets.delete(@uses, key)

        History.forget(key)

        case :ets.take(regions(), key) do
          [{_key, writer, reader}] ->
            Recorder.event(:deallocated)
            {record, {writer, reader}}

          [] ->
            {record, nil}
        end

      [] ->
        nil
    end
  end

  @spec all_mappings() :: [mapping()]
  def all_mappings, do: :ets.tab2list(@mappings)

  @spec put_mapping(mapping()) :: pos_integer()
  def put_mapping({_ref, key, pid, _reader, writer} = mapping) do
    :ets.insert(@mappings, mapping)
    count = :ets.update_counter(@counts, key, 1, {key, 0})
    History.add(key, if(writer, do: :takeover, else: :map), pid)
    count
  end

  @spec mapping(reference()) :: mapping() | nil
  def mapping(ref), do: List.first(safe_lookup(@mappings, ref))

  @spec take_mapping(reference()) :: mapping() | nil
  def take_mapping(ref) do
    with [{_ref, key, pid, _reader, writer} = mapping] <- :ets.take(@mappings, ref) do
      History.add(key, if(writer, do: :handover, else: :unmap), pid)
      if uncount(key, 1), do: History.forget_unused(key)

      mapping
    else
      [] -> nil
    end
  end

  @type reference_row ::
          {{Target.key(), pid() | reference()}, pid(), pos_integer(), token :: reference()}

  @spec all_references() :: [reference_row()]
  def all_references, do: :ets.tab2list(@references)

  @spec reference(Target.key(), pid() | reference()) :: reference_row() | nil
  def reference(key, holder), do: List.first(safe_lookup(@references, {key, holder}))

  @doc "One more reference; in one write, so that whoever is killed has done it or not."
  @spec add_reference(Target.key(), pid() | reference(), pid(), reference()) :: pos_integer()
  def add_reference(key, holder, pid, token) do
    {_, pid, n, _} = reference(key, holder) || {nil, pid, 0, nil}
    :ets.insert(@references, {{key, holder}, pid, n + 1, token})
    :ets.update_counter(@counts, key, 1, {key, 0})
  end

  @doc "One reference less; how many the holder still has."
  @spec drop_reference(reference_row(), reference()) :: non_neg_integer()
  def drop_reference({{key, _holder} = id, pid, n, _token}, token) do
    if n > 1,
      do: :ets.insert(@references, {id, pid, n - 1, token}),
      else: :ets.delete(@references, id)

    uncount(key, 1)
    n - 1
  end

  @doc "All references of a holder, forgotten at once."
  @spec take_reference(Target.key(), pid() | reference()) :: :ok
  def take_reference(key, holder) do
    with [{_id, _pid, n, _token}] <- :ets.take(@references, {key, holder}), do: uncount(key, n)
    :ok
  end

  defp uncount(key, n) do
    if :ets.update_counter(@counts, key, -n) == 0, do: :ets.delete(@counts, key)
  end

  @doc "Counts anew: whoever was killed between two writes left a count that is one off."
  @spec recount() :: :ok
  def recount do
    mapped = fn {_ref, key, _pid, _reader, _writer}, counts -> add(counts, key, 1) end
    referred = fn {{key, _holder}, _pid, n, _token}, counts -> add(counts, key, n) end
    counts = :ets.foldl(referred, :ets.foldl(mapped, %{}, @mappings), @references)

    for {key, _n} <- :ets.tab2list(@counts), not is_map_key(counts, key) do
      :ets.delete(@counts, key)
    end

    :ets.insert(@counts, Map.to_list(counts))
    :ok
  end

  defp add(counts, key, n), do: Map.update(counts, key, n, &(&1 + n))
end
