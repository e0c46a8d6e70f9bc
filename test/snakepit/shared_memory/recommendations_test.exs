defmodule Snakepit.SharedMemory.RecommendationsTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.{Histogram, Recommendations, Stats}

  @operations ~w(allocate map cleanup read write fetch)a
  @events ~w(allocated deallocated sweeps removed corrupted recovered cleared_readers failed
             owner_down process_ended events_dropped)a
  @limits %{max_regions: 1000, max_total_memory: 1_000_000_000}

  # Statistics as they are made, from made-up counts.
  defp stats(changes, regions) do
    now = DateTime.utc_now()
    none = %{count: 0, bytes: 0, errors: %{}, times: times(%{})}

    operations =
      for name <- @operations, into: %{} do
        {name, Map.merge(none, Map.new(Keyword.get(changes, name, [])))}
      end

    events = Map.merge(Map.new(@events, &{&1, 0}), Map.new(Keyword.get(changes, :events, [])))
    Stats.of(%{since: now, operations: operations, events: events}, regions, %{}, now)
  end

  defp times(microseconds) do
    counts = for {us, n} <- microseconds, into: %{}, do: {Histogram.bucket(us * 1000), n}
    for bucket <- 0..(Histogram.buckets() - 1), do: Map.get(counts, bucket, 0)
  end

  defp region(changes) do
    defaults = %{
      id: "r",
      size: 4096,
      bytes: 16_384,
      slots: 4,
      reads: 1,
      reads_by_id: 1,
      views: 0,
      writes: 1,
      bytes_read: 4096,
      bytes_written: 4096,
      value_bytes: 4096
    }

    Map.merge(defaults, Map.new(changes))
  end

  defp recommend(changes \\ [], regions \\ [], limits \\ @limits) do
    Recommendations.from(%{stats: stats(changes, regions), limits: limits, regions: regions})
  end

  test "R9.3 nothing to say of what is well" do
    assert recommend() == []
    regions = for n <- 1..100, do: region(id: "r#{n}")
    assert recommend([read: [count: 100_000], write: [count: 100_000]], regions) == []
  end

  test "R9.5 limits that come near" do
    regions = List.duplicate(region([]), 80)
    near = %{@limits | max_regions: 100}
    assert [%{severity: :warning, topic: :limits} = found] = recommend([], regions, near)
    assert found.evidence == %{limit: :max_regions, used: 80, allowed: 100}
    assert found.message =~ "80 of 100 regions"
    assert found.remedy =~ "raise :max_regions"
    assert [%{severity: :critical}] = recommend([], regions, %{@limits | max_regions: 84})
    assert recommend([], regions, %{@limits | max_regions: 101}) == []

    bytes = 80 * 16_384

    assert [%{severity: :warning, evidence: evidence}] =
             recommend([], regions, %{@limits | max_total_memory: round(bytes / 0.85)})

    assert %{limit: :max_total_memory, used: ^bytes} = evidence
  end

  test "R9.2 operations that fail often, ordinary answers aside" do
    failing = &[fetch: [count: &1, errors: %{corrupted: 6, io: 2, not_found: 1_000_000}]]
    assert [%{severity: :warning, topic: :errors} = found] = recommend(failing.(100))
    assert found.evidence == %{operation: :fetch, calls: 108, errors: %{corrupted: 6, io: 2}}
    assert found.message =~ "7.4 % of 108 calls of fetch failed, most with corrupted"
    assert recommend(failing.(91)) == []
    assert recommend(failing.(1000)) == []
  end

  test "reads that the writer overtakes" do
    overtaken = &[read: [count: &1, errors: %{version_conflict: 10}]]
    assert [%{severity: :warning, topic: :contention} = found] = recommend(overtaken.(990))
    assert found.evidence == %{reads: 1000, version_conflicts: 10}
    assert found.remedy =~ ":slots"
    assert recommend(overtaken.(991)) == []
    assert recommend(overtaken.(89)) == []
  end

  test "cleanup that fails, and what it has seen" do
    assert [critical, warning] = recommend(events: [failed: 2, corrupted: 3])
    assert %{severity: :critical, topic: :cleanup, evidence: %{corrupted: 3}} = critical
    assert critical.remedy =~ "corrupted: true"
    assert %{severity: :warning, topic: :cleanup, evidence: %{failed: 2}} = warning
  end

  test "R9.2 slow allocations" do
    slow = &[allocate: [count: 1000, times: times(%{100 => 1000 - &1, 20_000 => &1})]]
    assert [%{severity: :warning, topic: :allocation} = found] = recommend(slow.(11))
    assert found.message =~ "20 ms"
    assert found.evidence.samples == 1000
    assert recommend(slow.(9)) == []
    assert recommend(allocate: [count: 19, times: times(%{20_000 => 19})]) == []
  end

  test "R9.4 memory that no value fills" do
    loose = &region(id: &1, size: 1_048_576, bytes: 4_194_304, value_bytes: &2)

    assert [%{severity: :info, topic: :fragmentation} = found] =
             recommend([], [loose.("a", 262_144)])

    assert %{regions: 1, unused_bytes: 3_145_728, ids: ["a"]} = found.evidence
    assert recommend([], [loose.("a", 262_145)]) == []
    # Nobody has written, so nobody knows; and nothing is smaller than a page.
    assert recommend([], [region(size: 1_048_576, writes: 0, value_bytes: 0)]) == []
    assert recommend([], List.duplicate(region(value_bytes: 1), 500)) == []
    # The worst ones are named, not all.
    many = for n <- 1..9, do: loose.("r#{n}", n)
    assert [%{evidence: %{regions: 9, ids: ~w(r1 r2 r3 r4 r5)}}] = recommend([], many)
  end

  test "R9.3 regions that nobody reads" do
    unread = &region([reads: 0, reads_by_id: 0, bytes_read: 0] ++ &1)
    idle = unread.(age_s: 300, reader_count: 0)
    assert [%{severity: :info, topic: :unused} = found] = recommend([], [idle, region([])])
    assert found.evidence == %{regions: 1, bytes: 16_384, ids: ["r"]}

    for other <- [
          [age_s: 299, reader_count: 0],
          [age_s: 300, reader_count: 1],
          [age_s: 300, reader_count: 0, views: 1],
          []
        ] do
      assert recommend([], [unread.(other)]) == []
    end

    assert recommend([], [unread.(age_s: 300, reader_count: 0, writes: 0)]) == []
  end

  test "R9.3 many small reads by id" do
    read = &region(reads: 20_000, reads_by_id: &1, bytes_read: 20_000 * &2)
    assert [%{severity: :info, topic: :lookup} = found] = recommend([], [read.(10_000, 4096)])
    assert %{id: "r", reads_by_id: 10_000, average: 4096} = found.evidence
    assert found.remedy =~ "map_region"
    assert recommend([], [read.(9_999, 64)]) == []
    assert recommend([], [read.(10_000, 4097)]) == []
  end

  test "the most severe come first, and each says what it must" do
    regions = List.duplicate(region(reads: 20_000, reads_by_id: 20_000, bytes_read: 0), 90)
    changes = [events: [failed: 1, corrupted: 1], read: [count: 100, errors: %{io: 50}]]
    found = recommend(changes, regions, %{@limits | max_regions: 100})
    ranks = %{critical: 0, warning: 1, info: 2}
    severities = Enum.map(found, &ranks[&1.severity])
    assert severities == Enum.sort(severities)
    assert [0, 1, 2] -- severities == []

    for one <- found do
      assert Map.keys(one) |> Enum.sort() == ~w(evidence message remedy severity topic)a
      assert is_binary(one.message) and is_binary(one.remedy) and is_map(one.evidence)
    end
  end

  test "every topic of the documented table is found by these tests' rules, and no other" do
    {:docs_v1, _, _, _, %{"en" => docs}, _, _} = Code.fetch_docs(Recommendations)
    documented = for [_, topic] <- Regex.scan(~r/^\| `:(\w+)` \|/m, docs), do: topic

    assert Enum.sort(documented) ==
             ~w(allocation cleanup contention errors fragmentation limits lookup unused)
  end

  test "of what really is: unread regions are looked at, for their age and readers", %{
    place: place
  } do
    unread = SharedMemory.allocate_region!(4096, place)
    attached = SharedMemory.allocate_region!(4096, place)
    for id <- [unread, attached], do: SharedMemory.write!(id, "x", place)
    # As another OS process would: not through the registry.
    {:ok, reader} = Native.attach(native(place, attached))
    ours = Enum.filter(Stats.regions(), &(&1.id in [unread, attached]))
    found = Map.new(Recommendations.look(ours), &{&1.id, &1})
    assert %{reader_count: 0, age_s: age, reads: 0, writes: 1} = found[unread]
    assert age in 0..60
    assert %{reader_count: 1} = found[attached]
    # Only so many are looked at, the largest; none is dropped for that.
    [one | _] = ours
    many = for n <- 1..150, do: %{one | id: "r#{n}", bytes: n}
    {looked_at, left} = many |> Recommendations.look() |> Enum.split_with(&is_map_key(&1, :age_s))
    assert Enum.sort(Enum.map(looked_at, & &1.bytes)) == Enum.to_list(51..150)
    assert Enum.sort(Enum.map(left, & &1.bytes)) == Enum.to_list(1..50)
    # One that has gone meanwhile is left as it was.
    region = Enum.find(Stats.regions(), &(&1.id == unread))
    SharedMemory.deallocate_region!(unread, place)
    assert Recommendations.look([region]) == [region]
    {:ok, :ok} = Native.close_reader(reader)
  end

  test "of what really is: reads by id are found", %{place: place} do
    id = SharedMemory.allocate_region!(4096, place)
    SharedMemory.write!(id, "x", place)
    for _ <- 1..10_000, do: SharedMemory.read!(id, place)
    assert {:ok, found} = SharedMemory.recommendations()
    assert Enum.any?(found, &match?(%{topic: :lookup, evidence: %{id: ^id}}, &1))
  end
end
