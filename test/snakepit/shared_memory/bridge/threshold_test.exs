defmodule Snakepit.SharedMemory.Bridge.ThresholdTest do
  use Snakepit.SharedMemory.Case, async: true

  alias Snakepit.SharedMemory.Bridge
  alias Snakepit.SharedMemory.Bridge.Threshold

  @start 65_536

  defp new, do: Threshold.of(make_ref(), @start)

  # What a way costs, by a model: nanoseconds of a call with so many bytes.
  defp converge(known, cost, rounds) do
    Enum.reduce(1..rounds, known, fn _, known ->
      Enum.reduce([:plain, :handle], known, fn way, known ->
        Threshold.add(known, way, cost.(way, known.bytes) / known.bytes)
      end)
    end)
  end

  test "it goes to where the two ways cost the same" do
    for {fixed, per_byte} <- [{100_000, 10}, {100_000, 0.5}, {400_000, 3}, {50_000, 1}] do
      work = 0.2

      known =
        converge(
          new(),
          fn
            :plain, bytes -> bytes * (per_byte + work)
            :handle, bytes -> fixed + bytes * (0.05 + work)
          end,
          500
        )

      even = fixed / (per_byte - 0.05)
      assert known.bytes >= even / 2.5 and known.bytes <= even * 2.5
      assert known.moves >= 1
    end
  end

  test "it stays within its bounds, and where the ways cost the same" do
    assert converge(new(), fn way, _ -> if way == :plain, do: 1, else: 9 end, 500).bytes ==
             4_194_304

    assert converge(new(), fn way, _ -> if way == :plain, do: 9, else: 1 end, 500).bytes == 4096
    same = converge(new(), fn _way, bytes -> bytes end, 500)
    assert {same.bytes, same.moves, length(same.plain)} == {@start, 0, 32}
  end

  test "single calls that take very long do not move it" do
    known =
      Enum.reduce(1..200, new(), fn n, known ->
        slow = if rem(n, 5) == 0, do: 1_000_000.0, else: 1.0
        known |> Threshold.add(:handle, slow) |> Threshold.add(:plain, 1.0)
      end)

    assert known.bytes == @start
  end

  test "one call in sixteen is a trial, either way; others are none" do
    known = new()
    tried = for _ <- 1..32_000, do: Threshold.trial(known, [@start])
    counts = Enum.frequencies(tried)
    for way <- [:plain, :handle], do: assert(counts[way] in 700..1300)

    for sizes <- [[], [@start, @start], [div(@start, 4) - 1], [@start * 4 + 1]] do
      assert Enum.all?(1..500, fn _ -> Threshold.trial(known, sizes) == nil end)
    end

    assert Threshold.lowest(known) == div(@start, 4)
  end

  defmodule Via do
    # Both ways take so long that the difference is beyond doubt, and no time at all.
    def execute("t", args, opts) do
      if is_map(args[:x]) or opts[:slow] == nil, do: :ok, else: Process.sleep(opts[:slow])
      {:ok, nil}
    end
  end

  test "calls move the threshold of their own pool", %{place: place} do
    pool = make_ref()
    # Over the threshold, so that only the trials of the plain way take their time.
    text = String.duplicate("x", 100_000)
    opts = [via: Via, pool: pool, slow: 100] ++ place

    assert eventually(fn ->
             # Trials of which one way takes 100 ms longer.
             Bridge.execute("t", %{x: text}, opts)
             Bridge.threshold(pool).moves > 0
           end)

    assert Bridge.threshold(pool).threshold == 32_768
    assert %{threshold: 65_536, trials: 0} = Bridge.threshold(make_ref())
  end

  test "a pool that is configured anew begins anew" do
    pool = make_ref()
    Threshold.observe(pool, @start, :plain, 1000, 5000)
    assert Threshold.cost(Threshold.of(pool, @start), :plain) == 5.0
    assert Threshold.of(pool, 4096).plain == []
  end
end
