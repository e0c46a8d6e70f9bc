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
  #   counts    {key, mappings}                         how many of them there are for a region

  alias Snakepit.SharedMemory.{History, Native, Recorder, Target}

  @regions :snakepit_shm_regions
  @records :snakepit_shm_records
  @mappings :snakepit_shm_mappings
  @counts :snakepit_shm_counts

  defmodule Record do
    @moduledoc false
    @enforce_keys [:target, :size, :bytes, :slots, :owner_pid, :metadata, :state]
    defstruct @enforce_keys

    @type t :: %__MODULE__{
            target: Target.t(),
            size: pos_integer(),
            bytes: pos_integer(),
            slots: pos_integer(),
            owner_pid: pid(),
            metadata: map(),
            state: :live | {:creating, reference()}
          }
  end

  @type mapping :: {reference(), Target.key(), pid(), Native.reader(), Native.writer() | nil}

  @spec create() :: :ok
  def create do
    options = [:public, :set, read_concurrency: true]
    Enum.each([@records, @mappings, @counts], &:ets.new(&1, [:named_table | options]))
    :persistent_term.put(@regions, :ets.new(@regions, options))
  end

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

  @spec mappings(Target.key()) :: non_neg_integer()
  def mappings(key) do
    case safe_lookup(@counts, key) do
      [{_key, count}] -> count
      [] -> 0
    end
  end

  defp safe_lookup(table, key) do
    :ets.lookup(table, key)
  rescue
    ArgumentError -> []
  end

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

  @spec known?(Target.key()) :: boolean()
  def known?(key), do: :ets.member(@records, key)

  @doc "Whether a region is of this node, or held by a process of it."
  @spec held?(Target.key()) :: boolean()
  def held?(key) do
    :ets.member(@records, key) or :ets.member(@counts, key)
  rescue
    ArgumentError -> false
  end

  @spec put_record(Record.t()) :: true
  def put_record(record), do: :ets.insert(@records, {record.target.key, record})

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

  @doc "Forgets a region; its writer and reader, if it was live, and its record."
  @spec take(Target.key()) :: {Record.t(), {Native.writer(), Native.reader() | nil} | nil} | nil
  def take(key) do
    case :ets.take(@records, key) do
      [{_key, record}] ->
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
  def mapping(ref), do: List.first(:ets.lookup(@mappings, ref))

  @spec take_mapping(reference()) :: mapping() | nil
  def take_mapping(ref) do
    with [{_ref, key, pid, _reader, writer} = mapping] <- :ets.take(@mappings, ref) do
      History.add(key, if(writer, do: :handover, else: :unmap), pid)

      if :ets.update_counter(@counts, key, -1) == 0 do
        :ets.delete(@counts, key)
        History.forget_unused(key)
      end

      mapping
    else
      [] -> nil
    end
  end
end
