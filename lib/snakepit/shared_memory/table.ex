defmodule Snakepit.SharedMemory.Table do
  @moduledoc false
  # The ETS tables of the registry, read by everybody.
  #
  # They belong to the application's own process, so that they outlive a crash of the registry,
  # which finds its regions again in them. Hence `:public`; only the registry writes.
  #
  #   regions   {key, writer, reader | nil}             what a read or write by id needs
  #   records   {key, %Record{}}                        the rest about the regions of this node
  #   mappings  {ref, key, pid, reader, writer | nil, token}
  #                                                     who holds what mapped; the writer if it is the mapping's own;
  #                                                     of which region of the name, nil for another OS process's
  #   references {{key, holder}, pid, n, token}         references without a mapping, whose death ends them, the last change
  #   counts    {{key, token} | key, n}                 how many mappings and references there are for a region
  #   leases    {{kind, id}}                            sessions and workers that were known to be there
  #   uses      {key, n}                                uses that leave no other trace, of regions with a timeout

  alias Snakepit.SharedMemory.{History, Native, Recorder, Target}
  alias Snakepit.SharedMemory.Table.Record

  @regions :snakepit_shm_regions
  @records :snakepit_shm_records
  @mappings :snakepit_shm_mappings
  @counts :snakepit_shm_counts
  @references :snakepit_shm_references
  @uses :snakepit_shm_uses
  @leases :snakepit_shm_leases

  @typedoc "Which region of a name: one of this node by its token, nil is another OS process's."
  @type incarnation :: reference() | nil

  @type mapping ::
          {reference(), Target.key(), pid(), Native.reader(), Native.writer() | nil,
           incarnation()}

  @type resources :: {Native.writer(), Native.reader() | nil}

  @spec create() :: :ok
  def create do
    options = [:public, :set, read_concurrency: true]
    tables = [@records, @mappings, @counts, @uses, @leases]
    Enum.each(tables, &:ets.new(&1, [:named_table | options]))
    # In order, so that those of one region are found without looking at all there are.
    :ets.new(@references, [:named_table, :public, :ordered_set, read_concurrency: true])
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
    case safe_lookup(@counts, counted(key, incarnation(key))) do
      [{_key, count}] -> count
      [] -> 0
    end
  end

  # Whoever still holds a mapping of an earlier region of the name is not counted for this one.
  defp counted(key, nil), do: key
  defp counted(key, token), do: {key, token}

  defp incarnation(key) do
    with %Record{token: token} <- reservation(key), do: token
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
    :ets.match_object(@mappings, {:_, key, :_, :_, :_, incarnation(key)})
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
        :ets.select(@mappings, [
          {{:"$1", :"$2", :"$3", :_, :_, :_}, [], [{{:"$1", :"$2", :"$3"}}]}
        ]),
      references: for({{key, _holder}, _pid, n, _token} <- all_references(), do: {key, n}),
      # Of all regions that a name has stood for, as the others are.
      counts:
        Map.to_list(
          for {id, n} <- :ets.tab2list(@counts), reduce: %{} do
            counts -> add(counts, name(id), n)
          end
        )
    }
  end

  defp name({key, token}) when is_reference(token), do: key
  defp name(key), do: key

  @doc "Whether a region is of this node, or held by a process of it."
  @spec held?(Target.key()) :: boolean()
  def held?(key) do
    :ets.member(@records, key) or :ets.member(@counts, key)
  rescue
    ArgumentError -> false
  end

  @spec put_record(Record.t()) :: true
  def put_record(record) do
    if record.timeout,
      do: :ets.insert_new(@uses, {record.target.key, 0}),
      else: :ets.delete(@uses, record.target.key)

    :ets.insert(@records, {record.target.key, record})
  end

  @doc "Gives the regions that name no timeout of their own this one."
  @spec put_default_timeout(pos_integer() | nil) :: :ok
  def put_default_timeout(timeout) do
    changed = &(&1.state == :live and &1.by_default and &1.timeout != timeout)
    for record <- records(changed), do: put_record(%{record | timeout: timeout})
    :ok
  end

  @doc "Makes a region known; its record is there."
  @spec put_region(Target.key(), Native.writer()) :: true
  def put_region(key, writer) do
    [{_key, record}] = :ets.lookup(@records, key)
    Recorder.event(:allocated)
    # Somebody may still hold a mapping of an earlier region of this name.
    History.forget(key)
    operation = if record.adopted, do: :adopt, else: :allocate
    History.add(key, operation, record.owner_pid, %{size: record.size, slots: record.slots})
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

  @doc """
  Begins the end of a region: from now on it goes, whoever is killed. Answers what is to be given
  back first, if it was live; `forget/1` ends it.
  """
  @spec ending(Target.key()) :: {Record.t(), resources() | nil} | nil
  def ending(key) do
    with %Record{} = record <- reservation(key) do
      :ets.insert(@records, {key, %{record | state: :ending}})
      {record, resources(key)}
    end
  end

  defp resources(key) do
    with [{_key, writer, reader}] <- :ets.lookup(regions(), key),
         do: {writer, reader},
         else: ([] -> nil)
  end

  @doc "Ends a region, its record last; who held references to it."
  @spec forget(Record.t()) :: [{pid(), holder :: pid() | reference()}]
  def forget(%{target: %{key: key}}) do
    if :ets.take(regions(), key) != [], do: Recorder.event(:deallocated)
    :ets.delete(@uses, key)
    holders = for {holder, pid, _n} <- references(key), do: {pid, holder}
    for {_pid, holder} <- holders, do: take_reference(key, holder)
    :ets.delete(@records, key)
    History.forget(key)
    holders
  end

  @doc "Both at once, for who has no other use for what is to be given back."
  @spec take(Target.key()) :: {Record.t(), resources() | nil} | nil
  def take(key) do
    with {record, resources} <- ending(key) do
      forget(record)
      {record, resources}
    end
  end

  @doc """
  What a registry that was killed has left: the regions that live, the records of others, and what is
  still to be given back. `recover/1` clears the tables up, once that has been seen to.
  """
  @spec found() :: %{live: [Record.t()], broken: [Record.t()], lost: [resources()]}
  def found do
    {live, broken} =
      Enum.split_with(records(), fn record ->
        record.state == :live and :ets.member(regions(), record.target.key)
      end)

    keys = MapSet.new(live, & &1.target.key)

    lost =
      for {key, writer, reader} <- :ets.tab2list(regions()), key not in keys, do: {writer, reader}

    %{live: live, broken: broken, lost: lost}
  end

  @spec recover(%{live: [Record.t()], broken: [Record.t()]}) :: :ok
  def recover(%{live: live, broken: broken}) do
    keys = MapSet.new(live, & &1.target.key)
    Enum.each(broken, &forget/1)
    for {key, _, _} <- :ets.tab2list(regions()), key not in keys, do: :ets.delete(regions(), key)

    for {{key, _} = id, _, _, _} <- all_references(),
        key not in keys,
        do: :ets.delete(@references, id)

    recount()
    History.forget_all_unused()
  end

  @doc "Writers and readers of all regions, taken out: they are to be given back now."
  @spec all_resources() :: [resources()]
  def all_resources do
    for {key, _, _} <- :ets.tab2list(regions()), row <- :ets.take(regions(), key) do
      :ets.delete(@records, key)
      {_key, writer, reader} = row
      {writer, reader}
    end
  end

  @spec all_mappings() :: [mapping()]
  def all_mappings, do: :ets.tab2list(@mappings)

  @spec put_mapping(mapping()) :: pos_integer()
  def put_mapping({_ref, key, pid, _reader, writer, token} = mapping) do
    :ets.insert(@mappings, mapping)
    id = counted(key, token)
    count = :ets.update_counter(@counts, id, 1, {id, 0})
    History.add(key, if(writer, do: :takeover, else: :map), pid)
    count
  end

  @spec mapping(reference()) :: mapping() | nil
  def mapping(ref), do: List.first(safe_lookup(@mappings, ref))

  @spec take_mapping(reference()) :: mapping() | nil
  def take_mapping(ref) do
    with [{_ref, key, pid, _reader, writer, token} = mapping] <- :ets.take(@mappings, ref) do
      # What became of an earlier region is not the history of this one.
      if token == incarnation(key) do
        History.add(key, if(writer, do: :handover, else: :unmap), pid)
      end

      uncount(key, token, 1)
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
  @spec add_reference(Record.t(), pid() | reference(), pid(), reference()) :: pos_integer()
  def add_reference(%{target: %{key: key}} = record, holder, pid, token) do
    {_, pid, n, _} = reference(key, holder) || {nil, pid, 0, nil}
    :ets.insert(@references, {{key, holder}, pid, n + 1, token})
    id = counted(key, record.token)
    :ets.update_counter(@counts, id, 1, {id, 0})
  end

  @doc "One reference less; how many the holder still has."
  @spec drop_reference(reference_row(), reference()) :: non_neg_integer()
  def drop_reference({{key, _holder} = id, pid, n, _token}, token) do
    if n > 1,
      do: :ets.insert(@references, {id, pid, n - 1, token}),
      else: :ets.delete(@references, id)

    uncount(key, incarnation(key), 1)
    n - 1
  end

  @doc "All references of a holder, forgotten at once."
  @spec take_reference(Target.key(), pid() | reference()) :: :ok
  def take_reference(key, holder) do
    with [{_id, _pid, n, _token}] <- :ets.take(@references, {key, holder}),
         do: uncount(key, incarnation(key), n)

    :ok
  end

  # Whose count ends has no history any more, unless it is of a region that is there.
  defp uncount(key, token, n) do
    id = counted(key, token)

    if :ets.update_counter(@counts, id, {2, -n, 0, 0}, {id, n}) == 0 do
      :ets.delete(@counts, id)
      History.forget_unused(key)
    end
  end

  # Counts anew: whoever was killed between two writes left a count that is one off.
  defp recount do
    mapped = fn {_ref, key, _pid, _reader, _writer, token}, counts ->
      add(counts, counted(key, token), 1)
    end

    referred = fn {{key, _holder}, _pid, n, _token}, counts ->
      add(counts, counted(key, incarnation(key)), n)
    end

    counts = :ets.foldl(referred, :ets.foldl(mapped, %{}, @mappings), @references)

    for {id, _n} <- :ets.tab2list(@counts), not is_map_key(counts, id) do
      :ets.delete(@counts, id)
    end

    :ets.insert(@counts, Map.to_list(counts))
    :ok
  end

  defp add(counts, key, n), do: Map.update(counts, key, n, &(&1 + n))
end
