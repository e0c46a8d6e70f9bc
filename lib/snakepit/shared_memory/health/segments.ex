defmodule Snakepit.SharedMemory.Health.Segments do
  @moduledoc false
  # What the registry knows is in shared memory, whole, and ours; and nothing else is left there.
  #
  # One listing serves all regions. Only what looks wrong in it is looked at again, for regions come
  # and go meanwhile: a finding is of a region that was there, under the same record, before and after.

  alias Snakepit.SharedMemory.{Config, Health, Native, Table, Target}

  @typedoc "What the registry says of itself."
  @type audit :: {:ok, map()} | {:error, term()}

  @typedoc "What `Listing.list/1` says."
  @type listed :: Native.answer({[map()], [String.t()]})

  @spec check(audit(), listed(), Target.t()) :: [Health.finding()]
  def check({:error, reason}, _listed, _place), do: Health.unchecked(:segments, reason)

  def check({:ok, audit}, {:ok, {reports, _corrupted}}, place) do
    listed = Map.new(reports, &{&1.id, &1})
    mapped = Enum.group_by(audit.mappings, &elem(&1, 1), &elem(&1, 0))

    for %{target: %{key: key, id: id}} = record <- live(audit, place),
        refs = Map.get(mapped, key, []),
        wrong(record, listed[id], length(refs)) != nil,
        {message, evidence, remedy} <- List.wrap(look_again(record, refs)) do
      Health.finding(:segments, :critical, message, Map.put(evidence, :region, id), remedy)
    end
  end

  # Then each is looked at alone as well, and says what is wrong with it.
  def check(audit, {:error, {code, message, _segment, remedy}}, place) do
    said = "the regions cannot be listed: #{message}"
    failed = Health.finding(:segments, :critical, said, %{code: code}, remedy)
    [failed | check(audit, {:ok, {[], []}}, place)]
  end

  defp live(audit, place) do
    Enum.filter(audit.records, &(&1.state == :live and in?(&1.target, place)))
  end

  defp in?(target, place), do: target.namespace == place.namespace and target.dir == place.dir

  defp look_again(record, refs) do
    found =
      case Native.inspect_segment(Target.native(record.target)) do
        # Those that are there still were there all the time.
        {:ok, report} -> wrong(record, report, Enum.count(refs, &still_mapped?/1))
        {:error, {code, message, _segment, remedy}} -> {message, %{code: code}, remedy}
      end

    # Not if it was removed meanwhile, or its name is another's.
    %{token: token} = record
    if match?({:ok, %{token: ^token}}, Table.record(record.target.key)), do: found
  end

  # Whoever holds a mapping of an earlier region of the name has nothing to do with this one.
  defp still_mapped?(ref) do
    with row when row != nil <- Table.mapping(ref),
         {:ok, %{state: state}} <- Native.reader_info(elem(row, 3)) do
      state != :closed
    else
      nil -> false
      {:error, _closed_or_damaged} -> true
    end
  rescue
    # No reader at all.
    ArgumentError -> true
  end

  defp wrong(_record, nil, _mappings), do: :not_listed

  defp wrong(%{target: %{id: id, key: key}}, report, mappings) do
    writer = report.platform_handle.writer_pid

    cond do
      Integer.to_string(writer) != System.pid() and not lent?(key) ->
        {"region #{id} is ours, but process #{writer} is its writer", %{writer_pid: writer},
         "deallocate it here; the other process took it over, or its file was damaged"}

      mappings > 0 and report.reader_count == 0 ->
        {"region #{id} is mapped here, but its table of readers is empty", %{mappings: mappings},
         "unmap it and map it again; the file was damaged, and its memory may go too early"}

      true ->
        nil
    end
  end

  defp lent?(key) do
    case Table.writer(key) do
      nil -> false
      writer -> Native.is_lent(writer)
    end
  end

  # A sweep may be due at this very moment.
  @margin_ms 1_000
  @default_interval_ms %{real_time: 1_000, simulation: 5_000}

  @spec orphans(audit(), listed(), Target.t(), Config.t()) :: [Health.finding()]
  def orphans(audit, listed, place, config) do
    if all_ours?(audit, listed, place), do: [], else: orphans(place, config)
  end

  # What this process writes nobody has left. To look at each region costs thirty times the list.
  defp all_ours?({:ok, audit}, {:ok, {reports, []}}, place) do
    ours = audit |> live(place) |> MapSet.new(& &1.target.id)
    pid = System.pid() |> String.to_integer()
    Enum.all?(reports, &(&1.platform_handle.writer_pid == pid and &1.id in ours))
  end

  defp all_ours?(_audit, _listed, _place), do: false

  defp orphans(place, config) do
    interval = config.cleanup_interval || @default_interval_ms[config.mode]

    wanted = %{
      namespace: place.namespace,
      dir: place.dir,
      grace: config.grace + interval + @margin_ms,
      min_age: 0,
      module: nil,
      pattern: nil,
      dry_run: true,
      corrupted: false
    }

    # A region that is being removed has no writer any more, and its file for a moment longer.
    {failed, found} =
      fn -> looked_through(wanted) end
      |> Health.confirmed(fn {kind, item} -> {kind, item[:id], item[:reason]} end)
      |> Enum.split_with(&match?({:failed, _}, &1))

    found = Enum.group_by(found, &elem(&1, 0), &elem(&1, 1))

    for({:failed, %{finding: finding}} <- failed, do: finding) ++
      left(Map.get(found, :removed, [])) ++ corrupted(Map.get(found, :corrupted, []))
  end

  defp looked_through(wanted) do
    case Native.cleanup(wanted) do
      {:ok, report} ->
        for kind <- [:removed, :corrupted], item <- Map.fetch!(report, kind), do: {kind, item}

      {:error, {code, message, _segment, remedy}} ->
        said = "the namespace cannot be looked through: #{message}"
        [failed: %{finding: Health.finding(:orphans, :warning, said, %{code: code}, remedy)}]
    end
  end

  defp left([]), do: []

  defp left(items) do
    message = "#{length(items)} regions are left that nobody uses"
    [Health.finding(:orphans, :warning, message, evidence(items), "call cleanup_regions/1")]
  end

  defp corrupted([]), do: []

  defp corrupted(items) do
    message = "#{length(items)} regions are corrupted"
    remedy = "call cleanup_regions(corrupted: true)"
    [Health.finding(:orphans, :warning, message, evidence(items), remedy)]
  end

  defp evidence(items) do
    %{regions: Health.some(items), bytes: items |> Enum.map(& &1.bytes) |> Enum.sum()}
  end
end
