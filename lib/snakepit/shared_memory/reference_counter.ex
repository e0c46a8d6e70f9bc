defmodule Snakepit.SharedMemory.ReferenceCounter do
  @moduledoc """
  Who refers to a region, and references without a mapping.

  A region is referred to by its owner, by each mapping (`Snakepit.SharedMemory.map_region/2`), by each
  attached reader of another OS process, and by what `increment/2` adds for those who need it kept but
  do not read it themselves. What this VM's processes refer to ends when they die, however they die, and
  with the region: a later one of the same name begins without any.
  Binaries from `Snakepit.SharedMemory.binary/2` and `Snakepit.SharedMemory.fetch/2` are no references: they
  stay valid when the region goes.

  With `cleanup_policy: :reference_counted` a region is marked when the last reference has gone, and
  removed after the grace (`:reference_grace` in `Snakepit.SharedMemory.Config`) unless somebody maps it
  or increments its count meanwhile. With the other policies the counts only inform.

      iex> alias Snakepit.SharedMemory
      iex> alias Snakepit.SharedMemory.ReferenceCounter
      iex> id = SharedMemory.allocate_region!(4096)
      iex> ReferenceCounter.get_count(id)
      {:ok, 1}
      iex> ref = make_ref()
      iex> ReferenceCounter.increment(id, ref)
      {:ok, 2}
      iex> ReferenceCounter.decrement(id, ref)
      {:ok, 1}
      iex> {:error, error} = ReferenceCounter.decrement(id, ref)
      iex> {error.code, ReferenceCounter.get_count(id)}
      {:not_referenced, {:ok, 1}}
      iex> SharedMemory.deallocate_region!(id) == id
      true
  """

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.{Config, Error, Native, Options, Recorder, Registry, Table, Target}

  @typedoc "A process, for as long as it lives; or a reference, for as long as the caller lives."
  @type holder :: pid() | reference()

  @typedoc """
  One who refers to a region: `:kind` is `:owner`, `:mapping`, `:reference` or `:os_reader` (readers of other
  OS processes, all together); `:pid` the process with whose end it ends; `:holder` what was given to
  `increment/2`, else nil.
  """
  @type entry :: %{
          kind: :owner | :mapping | :reference | :os_reader,
          pid: pid() | nil,
          holder: holder() | nil,
          count: pos_integer()
        }

  @doc """
  Adds a reference of `holder` and answers how many this VM holds now.

  `holder` is a process, whose end ends the reference, or a reference made by the caller with
  `make_ref/0`: the caller's end ends it. It may be called several times for one holder.
  """
  @spec increment(SharedMemory.region(), holder(), SharedMemory.options()) ::
          SharedMemory.result(pos_integer())
  def increment(region, holder, opts \\ []) do
    with {:ok, target} <- resolve(region, holder, opts, :increment) do
      Registry.refer(target, holder, :increment)
    end
    |> noted(:increment)
  end

  @doc """
  Takes one reference of `holder` back and answers how many this VM holds now.

  The owner's own reference to a region with `cleanup_policy: :reference_counted` can be given back by
  passing the owner's pid. Mappings are given back by `Snakepit.SharedMemory.unmap_region/2`. A holder
  without a reference is an error with code `:not_referenced`, and nothing changes.
  """
  @spec decrement(SharedMemory.region(), holder(), SharedMemory.options()) ::
          SharedMemory.result(non_neg_integer())
  def decrement(region, holder, opts \\ []) do
    with {:ok, target} <- resolve(region, holder, opts, :decrement) do
      Registry.unrefer(target, holder, :decrement)
    end
    |> noted(:decrement)
  end

  @doc "How many refer to a region: in this VM, and attached readers of other OS processes that live."
  @spec get_count(SharedMemory.region(), SharedMemory.options()) ::
          SharedMemory.result(non_neg_integer())
  def get_count(region, opts \\ []) do
    with {:ok, target} <- resolve(region, self(), opts, :get_count),
         {:ok, readers} <- os_readers(target, :get_count) do
      {:ok, owner(target) + Table.count(target.key) + readers}
    end
    |> noted(:get_count)
  end

  @doc "Who refers to a region. For looking, not for often: it goes through all mappings of this VM."
  @spec get_references(SharedMemory.region(), SharedMemory.options()) ::
          SharedMemory.result([entry()])
  def get_references(region, opts \\ []) do
    with {:ok, target} <- resolve(region, self(), opts, :get_references),
         {:ok, readers} <- os_readers(target, :get_references) do
      {:ok,
       owners(target) ++
         mappings(target) ++
         references(target) ++
         if(readers > 0, do: [entry(:os_reader, nil, nil, readers)], else: [])}
    end
    |> noted(:get_references)
  end

  defp noted(answer, operation) do
    with {:error, error} <- Recorder.answered(operation, answer),
         do: {:error, Error.Log.note(error)}
  end

  defp owner(target), do: length(owners(target))

  defp owners(target) do
    case Table.record(target.key) do
      {:ok, %{owned: true, owner_pid: pid}} -> [entry(:owner, pid, nil, 1)]
      _ -> []
    end
  end

  defp mappings(target) do
    counts = target.key |> Table.mappings() |> Enum.frequencies_by(&elem(&1, 2))
    for {pid, count} <- Enum.sort(counts), do: entry(:mapping, pid, nil, count)
  end

  defp references(target) do
    for {holder, pid, count} <- Enum.sort(Table.references(target.key)) do
      entry(:reference, pid, holder, count)
    end
  end

  defp entry(kind, pid, holder, count) do
    %{kind: kind, pid: pid, holder: holder, count: count}
  end

  defp os_readers(target, operation) do
    usage = Native.usage(Target.native(target))

    with {:ok, {_version, readers}} <- Error.wrap(usage, operation, target.id) do
      {:ok, readers}
    end
  end

  defp resolve(region, holder, opts, operation) do
    with {:ok, options} <- Options.validate(opts, Target.schema(), operation),
         {:ok, _config} <- Config.fetch(operation),
         :ok <- check(holder, operation) do
      Target.resolve(region, options, operation)
    end
  end

  defp check(holder, _operation)
       when (is_pid(holder) or is_reference(holder)) and node(holder) == node(),
       do: :ok

  defp check(holder, operation) do
    shown = inspect(holder, limit: 5, printable_limit: 60)

    {:error,
     Error.new(:invalid_argument, "not a holder of references: #{shown}",
       operation: operation,
       remedy: "pass a pid of this node, or a reference of this node, from make_ref/0"
     )}
  end
end
