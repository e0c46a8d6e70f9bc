defmodule Snakepit.SharedMemory.Histogram do
  @moduledoc false
  # Durations in buckets: exact to 16 ns, then sixteen to an octave, so that a bucket is at most
  # 1/16 (6.25 %) of its values wide, and its middle at most 3.2 % off. What is longer than 2^40 ns
  # (18 minutes) counts as that. The NIF library counts in the same buckets
  # (`native/nif/src/tally.rs`).

  import Bitwise

  @octaves 40
  @longest (1 <<< @octaves) - 1
  @buckets (@octaves - 3) * 16

  @typedoc "Counts by bucket."
  @type counts :: [non_neg_integer()]

  @typedoc """
  Of an operation. `count` are the calls that succeeded, `samples` those that were timed; times are
  in microseconds, nil without a sample.
  """
  @type summary :: %{
          count: non_neg_integer(),
          samples: non_neg_integer(),
          p50: float() | nil,
          p90: float() | nil,
          p99: float() | nil,
          p999: float() | nil,
          max: float() | nil
        }

  @doc "How many buckets there are."
  @spec buckets() :: pos_integer()
  def buckets, do: @buckets

  @doc "The bucket of a duration in nanoseconds, from 0."
  @spec bucket(integer()) :: non_neg_integer()
  def bucket(ns) when ns < 16, do: max(ns, 0)

  def bucket(ns) do
    ns = min(ns, @longest)
    # Exact: below 2^40 a float tells any number from the next power of two.
    octave = trunc(:math.log2(ns))
    (octave - 3) * 16 + (ns >>> (octave - 4) &&& 15)
  end

  @doc "The shortest and the longest duration of a bucket."
  @spec bounds(non_neg_integer()) :: {non_neg_integer(), non_neg_integer()}
  def bounds(bucket) when bucket < 16, do: {bucket, bucket}

  def bounds(bucket) do
    shift = div(bucket, 16) - 1
    low = (16 + rem(bucket, 16)) <<< shift
    {low, low + (1 <<< shift) - 1}
  end

  @doc "Percentiles of what has been counted; `count` when not all calls were timed."
  @spec summary(counts(), non_neg_integer() | nil) :: summary()
  def summary(counts, count \\ nil) do
    samples = Enum.sum(counts)
    filled = for {n, bucket} <- Enum.with_index(counts), n > 0, do: {bucket, n}

    %{
      count: count || samples,
      samples: samples,
      p50: percentile(filled, samples, 0.5),
      p90: percentile(filled, samples, 0.9),
      p99: percentile(filled, samples, 0.99),
      p999: percentile(filled, samples, 0.999),
      max: longest(filled)
    }
  end

  defp percentile([], _samples, _share), do: nil

  defp percentile(filled, samples, share) do
    {low, high} = filled |> nth(max(ceil(samples * share), 1)) |> bounds()
    (low + high) / 2 / 1000
  end

  # The bucket of the nth shortest.
  defp nth([{bucket, n} | _], rank) when rank <= n, do: bucket
  defp nth([{_bucket, n} | longer], rank), do: nth(longer, rank - n)

  defp longest([]), do: nil

  defp longest(filled) do
    {bucket, _n} = List.last(filled)
    {_low, high} = bounds(bucket)
    high / 1000
  end
end
