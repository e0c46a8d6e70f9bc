defmodule Snakepit.SharedMemory.HistogramTest do
  use ExUnit.Case, async: true

  import Bitwise

  alias Snakepit.SharedMemory.{Histogram, Native}

  defp counts(durations) do
    counted = durations |> Enum.map(&Histogram.bucket/1) |> Enum.frequencies()
    for bucket <- 0..(Histogram.buckets() - 1), do: Map.get(counted, bucket, 0)
  end

  test "buckets follow one another without a gap, none wider than a sixteenth of its values" do
    last =
      Enum.reduce(0..(Histogram.buckets() - 1), -1, fn bucket, before ->
        {low, high} = Histogram.bounds(bucket)
        assert low == before + 1
        assert high >= low
        assert (high - low + 1) * 16 <= max(low, 16)
        assert Histogram.bucket(low) == bucket
        assert Histogram.bucket(high) == bucket
        high
      end)

    assert last == (1 <<< 40) - 1
  end

  test "what lies outside counts at the ends" do
    assert Histogram.bucket(-5) == 0
    assert Histogram.bucket(1 <<< 60) == Histogram.buckets() - 1
  end

  test "percentiles are those of the sorted values, within 3.2 %" do
    :rand.seed(:exsss, 42)
    durations = for _ <- 1..10_000, do: round(:math.exp(:rand.uniform() * 20)) + 16
    sorted = Enum.sort(durations)
    summary = Histogram.summary(counts(durations))

    for {key, share} <- [p50: 0.5, p90: 0.9, p99: 0.99, p999: 0.999] do
      exact = Enum.at(sorted, ceil(10_000 * share) - 1) / 1000
      assert_in_delta summary[key], exact, exact * 0.032
    end

    longest = List.last(sorted) / 1000
    assert summary.max >= longest and summary.max <= longest * 1.0626
    assert summary.count == 10_000 and summary.samples == 10_000
  end

  test "one value, and none" do
    assert %{p50: 0.01, p999: 0.01, max: 0.01, samples: 1} = Histogram.summary(counts([10]))
    none = Histogram.summary(counts([]), 7)
    assert none == %{count: 7, samples: 0, p50: nil, p90: nil, p99: nil, p999: nil, max: nil}
  end

  test "the NIF library has the same buckets" do
    assert %{read: %{times: reads}, write: %{times: writes}} = Native.totals()
    assert length(reads) == Histogram.buckets()
    assert length(writes) == Histogram.buckets()

    for bucket <- 0..(Histogram.buckets() - 1), ns <- Tuple.to_list(Histogram.bounds(bucket)) do
      assert Native.time_bucket(ns) == bucket
    end

    assert Native.time_bucket(1 <<< 63) == Histogram.bucket(1 <<< 63)
  end
end
