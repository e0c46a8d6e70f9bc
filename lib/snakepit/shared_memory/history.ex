defmodule Snakepit.SharedMemory.History do
  @moduledoc false
  # The latest changes of each region: how it came, who mapped and unmapped it, when it was sealed.
  # Writes are not among them.
  #
  # Entries lie in a ring of `history_limit` rows for each region, in a table of the application,
  # so that they outlive a crash of the registry; they go with the region, and those of another OS
  # process's region with its last mapping here. However many regions there are, the table stays
  # within a bound: beyond it every region overwrites its first few rows only.
  #
  #   {{key, row}, number, time, operation, pid, details}
  #   {key, number of the latest entry}                      in the table of numbers

  alias Snakepit.SharedMemory.{Config, Error, Options, Table, Target}

  @entries :snakepit_shm_history
  @numbers :snakepit_shm_history_numbers

  @default_limit 50
  @bound 200_000
  @rows_beyond_bound 4

  @type entry :: %{at: DateTime.t(), operation: atom(), pid: pid() | nil, details: map()}

  @spec create() :: :ok
  def create do
    # Its size is asked for at each change, in the registry too. Of a counter that is spread over
    # the schedulers the VM makes a snapshot, for which the caller waits until each has run.
    @entries =
      :ets.new(@entries, [
        :public,
        :named_table,
        :ordered_set,
        write_concurrency: true,
        decentralized_counters: false
      ])

    @numbers = :ets.new(@numbers, [:public, :named_table, :set, write_concurrency: true])
    :ok
  end

  @doc "Notes a change of a region, by a process."
  @spec add(Target.key(), atom(), pid() | nil, map()) :: :ok
  def add(key, operation, pid, details \\ %{}) do
    rows = rows()

    if rows > 0 do
      number = :ets.update_counter(@numbers, key, 1, {key, 0})
      time = System.system_time(:microsecond)
      :ets.insert(@entries, {{key, rem(number, rows)}, number, time, operation, pid, details})
      # The region may have gone meanwhile, and nobody would clear up after it.
      forget_unused(key)
    end

    :ok
  rescue
    # The application is stopping: so does the history.
    ArgumentError -> :ok
  end

  # Without a history nothing is asked.
  defp rows do
    if limit() == 0, do: 0, else: rows(:ets.info(@entries, :size))
  end

  @doc "How many rows a region may use when the table has so many."
  @spec rows(non_neg_integer()) :: non_neg_integer()
  def rows(size) when size < @bound, do: limit()
  def rows(_size), do: min(limit(), @rows_beyond_bound)

  defp limit do
    case Config.fetch(:history) do
      {:ok, config} -> Map.get(config, :history_limit, @default_limit)
      {:error, _} -> @default_limit
    end
  end

  @doc "Drops what is known of a region that has gone."
  @spec forget(Target.key()) :: :ok
  def forget(key) do
    :ets.delete(@numbers, key)
    :ets.match_delete(@entries, {{key, :_}, :_, :_, :_, :_, :_})
    :ok
  rescue
    ArgumentError -> :ok
  end

  @doc "Drops what is known of a region of another OS process that nobody here maps any more."
  @spec forget_unused(Target.key()) :: :ok
  def forget_unused(key) do
    if Table.held?(key), do: :ok, else: forget(key)
  end

  @doc "The same of all regions: what whoever was killed had no time to drop."
  @spec forget_all_unused() :: :ok
  def forget_all_unused do
    for {key, _number} <- :ets.tab2list(@numbers), do: forget_unused(key)
    :ok
  end

  @doc "The latest changes of a region, oldest first."
  @spec of(term(), term()) :: {:ok, [entry()]} | {:error, Error.t()}
  def of(region, opts) do
    with {:ok, options} <- Options.validate(opts, Target.schema(), :history),
         {:ok, target} <- Target.resolve(region, options, :history) do
      case entries(target.key) do
        {:ok, []} -> nothing(target)
        {:ok, entries} -> {:ok, entries}
        :not_started -> {:error, Error.not_started(:history)}
      end
    end
  end

  defp entries(key) do
    latest =
      @entries
      |> :ets.match_object({{key, :_}, :_, :_, :_, :_, :_})
      |> Enum.sort_by(&elem(&1, 1))
      |> Enum.take(-limit())

    {:ok, Enum.map(latest, &entry/1)}
  rescue
    ArgumentError -> :not_started
  end

  defp entry({_row, _number, time, operation, pid, details}) do
    at = DateTime.from_unix!(time, :microsecond)
    %{at: at, operation: operation, pid: pid, details: details}
  end

  # Nothing is known of a region that has gone, even while somebody holds a mapping of it.
  defp nothing(%{key: key, id: id}) do
    if limit() == 0 and Table.held?(key), do: {:ok, []}, else: {:error, unknown(id)}
  end

  defp unknown(id) do
    Error.new(:not_found, "this node has no history of region #{id}",
      region: id,
      operation: :history,
      remedy: "history is kept of regions of this node, and of others while they are mapped here"
    )
  end
end
